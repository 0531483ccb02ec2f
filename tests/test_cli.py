"""The command line: help without torch, settings from files, errors that name what is wrong."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from abbe import cli
from abbe.config import from_dict
from abbe.errors import ConfigError
from abbe.train.recipe import RECIPES, Recipe
from abbe.verbs.train_classify import TrainClassify
from builders import write_cohort


def test_help_imports_neither_torch_nor_numpy() -> None:
    heavy = "{'torch', 'numpy', 'tyro'}"
    script = f"import sys; from abbe import cli; cli.run(['--help']); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in cli.VERBS:
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run([*verb.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"abbe {verb}" in text.split("Example:")[1]
    assert "--json" in text


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_option_is_documented(verb: str) -> None:
    module, _, name = cli.VERBS[verb][0].partition(":")
    kind = getattr(importlib.import_module(f"abbe.verbs.{module}"), name)
    body = "".join(inspect.getsource(base) for base in kind.__mro__[:-1])
    for field in kind.__dataclass_fields__:
        after = body.split(f"\n    {field}: ")[1].split("\n", 1)[1].lstrip()
        assert after.startswith('"""'), f"{name}.{field} has no description"


def test_unknown_verbs_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["encoed", "x"]) == 2
    assert "unknown verb 'encoed'. Did you mean 'encode'" in capsys.readouterr().err
    assert cli.run(["train"]) == 2
    assert "abbe train classify" in capsys.readouterr().err
    assert cli.run(["train", "--help"]) == 0
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"abbe {cli.__version__}\n")


def test_a_misspelt_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(["verify", ".", "--jsom"])
    assert stop.value.code == 2
    assert "--json" in capsys.readouterr().err


def test_a_recipe_is_named_and_single_options_override_it() -> None:
    given = ["--features", "f", "--labels", "l.csv", "--out", "o"]
    verb = cli._parse(TrainClassify, "train classify", [*given, "--recipe", "tcssa-mil", "--recipe.epochs", "20"])
    assert (verb.recipe.monitor, verb.recipe.min_lr, verb.recipe.epochs) == ("auroc", 1e-6, 20)
    assert cli._parse(TrainClassify, "train classify", given).recipe == RECIPES["abbe"]
    assert cli._parse(TrainClassify, "train classify", [*given, "--recipe=tcssa-mil"]).recipe == RECIPES["tcssa-mil"]
    with pytest.raises(ConfigError, match=r"unknown recipe 'tcssa'\. Did you mean 'tcssa-mil'"):
        cli._parse(TrainClassify, "train classify", [*given, "--recipe", "tcssa"])


def test_a_run_s_config_reads_back_and_options_override_it(tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path, patients=14, n=10)
    options = ["--condenser", "mean", "--recipe.epochs", "1", "--draws", "20", "--cpu"]
    where = ["--features", str(features), "--labels", str(labels)]
    assert cli.run(["train", "classify", *where, "--out", str(tmp_path / "a"), *options]) == 0
    config = tmp_path / "a" / "config.json"
    again = ["train", "classify", "--config", str(config), "--out", str(tmp_path / "b"), "--recipe.seed", "5"]
    assert cli.run(again) == 0
    old, new = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert new["condenser"] == "mean"
    assert new["recipe"] == {**old["recipe"], "seed": 5}
    assert new["out"] == str(tmp_path / "b")


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"features": "f", "labels": "l", "out": "o", "recipe": {"epoch": 3}}))
    assert cli.run(["train", "classify", "--config", str(path)]) == 2
    assert "c.json, key 'recipe': unknown key 'epoch'. Did you mean 'epochs'" in capsys.readouterr().err
    path.write_text("{")
    assert cli.run(["train", "classify", f"--config={path}"]) == 2
    assert "not valid JSON" in capsys.readouterr().err
    assert cli.run(["train", "classify", "--config", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": "many"}, "key 'tokens': expected int . float . None, got 'many'"),
        ({"pooling": "max"}, "key 'pooling': expected Literal.*, got 'max'"),
        ({"draws": 1.5}, "key 'draws': expected int, got 1.5"),
        ({"resume": 1}, "key 'resume': expected bool, got 1"),
        ({"recipe": [1]}, "expected an object of settings, found list"),
    ],
)
def test_values_of_a_wrong_type_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainClassify, values, "config.json")


def test_types_come_back_as_they_were() -> None:
    values = {
        "features": "f",
        "labels": "l",
        "out": "o",
        "tokens": 0.5,
        "condenser_options": ["a=1"],
        "recipe": {"lr": 1},
    }
    run = from_dict(TrainClassify, values, "x")
    assert run == TrainClassify(
        features=Path("f"),
        labels=Path("l"),
        out=Path("o"),
        tokens=0.5,
        condenser_options=("a=1",),
        recipe=Recipe(lr=1.0),
    )


def test_a_missing_file_is_refused_before_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", "classify", "--out", str(tmp_path)]) == 2
    assert "are all required, unless --from is given" in capsys.readouterr().err
