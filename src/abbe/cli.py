"""The command line. `abbe --help` imports only the table `VERBS`; each verb imports what it needs.

A verb is a frozen dataclass: its fields are the options, its docstring is the help, `run()` returns the exit code.
Exit codes: 0 success, 1 some items failed, 2 invalid input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abbe.version import __version__

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo:Demo", "full example: phantom slides → features → train → compare → report.html"),
    "inspect": ("inspect:Inspect", "describe a slide, bag, table, benchmark or model, and report problems"),
    "encode": ("encode:Encode", "slides → bags of patch features, in TRIDENT layout"),
    "convert": ("convert:Convert", "feature files of any layout → another layout"),
    "cohort mosaic": ("cohort_mosaic:MosaicCohort", "a cohort with ground truth from real labelled patches"),
    "cohort phantom": ("cohort_phantom:PhantomCohort", "a cohort with ground truth from rendered patches"),
    "cohort realism": ("cohort_realism:Realism", "compare rendered patches with real ones, by eye and by a probe"),
    "train classify": (
        "train_classify:TrainClassify",
        "bags and labels → a slide classifier, evaluated on held-out patients",
    ),
    "evaluate classify": ("evaluate_classify:EvaluateClassify", "a model and a labelled cohort → metrics"),
    "condense": ("condense:CondenseSlide", "a bag and a model → tokens and the assignment of patches"),
    "export heatmap": ("export_heatmap:ExportHeatmap", "a slide and a model → pictures of the patches that were kept"),
    "export tsne": ("export_tsne:ExportTsne", "t-SNE of the patches of several cohorts, coloured by slot"),
    "bench flops": (
        "bench_flops:BenchFlops",
        "count the operations of every method, and compare with published counts",
    ),
    "bench needle": ("bench_needle:BenchNeedle", "the smallest share of tumour patches that each method still detects"),
    "bench ops": ("bench_ops:BenchOps", "time and memory of routing, compared with dense PyTorch"),
    "bench slots": ("bench_slots:BenchSlots", "effect of the clustering loss on the slots of TC-SSA"),
    "bench texture": ("bench_texture:BenchTexture", "speed of `texture`, and accuracy of a linear probe on it"),
    "verify": ("verify:Verify", "list files of an output folder that are missing, cut short, altered or foreign"),
}
"""{verb: ("module in abbe.verbs:class", description)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `abbe` command."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; error messages go to stderr."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"abbe {__version__}\n")
        return 0
    verb, rest = _split(arguments)
    if verb is None:
        return 0 if rest else 2
    from abbe.errors import AbbeError, InputError

    module, _, name = VERBS[verb][0].partition(":")
    kind = getattr(importlib.import_module(f"abbe.verbs.{module}"), name)
    try:
        return int(_parse(kind, verb, rest).run())
    except InputError as error:
        sys.stderr.write(f"abbe {verb}: {error}\n")
        return 2
    except AbbeError as error:
        sys.stderr.write(f"abbe {verb}: {error}\n")
        return 1
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write(f"abbe {verb}: interrupted; run the same command to resume\n")
        return 130


def overview() -> str:
    """The text of `abbe --help`."""
    width = max(map(len, VERBS))
    lines = [
        "Abbe condenses a gigapixel pathology slide into about 32 tokens and predicts from them.",
        "",
        "usage: abbe VERB [options]     abbe VERB --help",
        "",
        *(f"  {verb:<{width}}  {phrase}" for verb, (_, phrase) in VERBS.items()),
        "",
        "Every verb takes --config FILE (a config.json of an earlier run; options override it). Repeating a command",
        "resumes it. Exit codes: 0 success, 1 some items failed, 2 invalid input.",
        "",
        "example: abbe encode slides/ --out out --mpp 0.5",
    ]
    return "\n".join(lines) + "\n"


def _split(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(verb, its options); (None, …) after a group's help, or, with empty options, after an error message."""
    for words in (2, 1):
        verb = " ".join(arguments[:words])
        if len(arguments) >= words and verb in VERBS:
            return verb, arguments[words:]
    group = [verb for verb in VERBS if verb.split(" ")[0] == arguments[0]]
    if group:
        text = "\n".join(f"  abbe {verb}  {VERBS[verb][1]}" for verb in group) + "\n"
        asked = len(arguments) > 1 and arguments[1] in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(f"abbe {arguments[0]} needs one of:\n{text}")
        return None, arguments if asked else []
    from abbe.errors import nearest

    sys.stderr.write(f"abbe: unknown verb {arguments[0]!r}. {nearest(arguments[0], VERBS)}\n")
    return None, []


def _parse(kind: type, verb: str, arguments: list[str]) -> Any:
    import tyro

    from abbe.config import read_config
    from abbe.errors import InputError

    given, rest = _take("config", arguments)
    default = read_config(kind, Path(given)) if given else None
    if "recipe" in {field.name for field in dataclasses.fields(kind)}:
        name, rest = _take("recipe", rest)
        default = _with_recipe(kind, default, name) if name else default
    description = inspect.cleandoc(kind.__doc__ or "")
    options: dict[str, Any] = {} if default is None else {"default": default}
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(kind, prog=f"abbe {verb}", description=description, args=rest, **options)
    except SystemExit as stop:
        # tyro prints errors in a box; raise our own errors so that they are printed like all others.
        cause: BaseException | None = stop
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        sys.stderr.write(captured.getvalue())
        raise


def _take(option: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """Split `--option VALUE` or `--option=VALUE` off a command line."""
    from abbe.errors import ConfigError

    for at, word in enumerate(arguments):
        if word == f"--{option}":
            if at + 1 == len(arguments):
                raise ConfigError(f"--{option} needs a value")
            return arguments[at + 1], arguments[:at] + arguments[at + 2 :]
        if word.startswith(f"--{option}="):
            return word.removeprefix(f"--{option}="), arguments[:at] + arguments[at + 1 :]
    return None, arguments


def _with_recipe(kind: type, default: Any, name: str) -> Any:
    """The defaults of a verb with the recipe of this name; `--recipe.OPTION` still overrides it."""
    from abbe.config import from_dict
    from abbe.errors import ConfigError, nearest
    from abbe.train.recipe import RECIPES

    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}. {nearest(name, RECIPES)}")
    if default is None:
        default = from_dict(kind, {}, "options", partial=True)
    return dataclasses.replace(default, recipe=RECIPES[name])


if __name__ == "__main__":
    main()
