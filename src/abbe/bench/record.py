"""What every dated result records: date, hardware, code, command and settings. Written as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any

import torch

from abbe.config import from_dict, only, to_flags
from abbe.store.commit import to_json
from abbe.version import __version__


def circumstances(verb: str, kind: type | None = None, settings: Any = None) -> dict[str, Any]:
    """Date, hardware, versions, commit, command and settings of a benchmark.

    verb: such as "bench needle".   settings: an instance of the dataclass `kind`. All of them are recorded, and the
    command has every one that differs from its default; paths lose their folders. `settings_of` reads them back.
    """
    published = _without_folders(settings)
    flags = [] if kind is None else to_flags(kind, published)
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": shlex.join(["abbe", *verb.split(), *flags]),
        "settings": {} if kind is None else only(kind, published),
        "abbe": __version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def settings_of(kind: type, circumstances: dict[str, Any], **changed: Any) -> Any:
    """The settings a result was made with; `changed` replaces some, such as the folders, which are not recorded."""
    settings = from_dict(kind, circumstances["settings"], circumstances["command"])
    return dataclasses.replace(settings, **changed)


def write_result(folder: Path, name: str, result: dict[str, Any], markdown: str) -> Path:
    """Write <date>-<name>.json and .md into `folder`; returns the Markdown's path.

    They get no sidecars: they are meant for a repository, which has its own hashes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['circumstances']['date']}-{name}"
    (folder / f"{stem}.json").write_text(to_json(result), encoding="utf-8")
    path = folder / f"{stem}.md"
    path.write_text(markdown, encoding="utf-8")
    return path


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def about(circumstances: dict[str, Any]) -> str:
    """The circumstances as a Markdown paragraph."""
    hardware = f"{circumstances['cpu']}, {circumstances['cores']} cores, GPU: {circumstances['gpu'] or 'none'}"
    return (
        f"{circumstances['date']} · {hardware} · Python {circumstances['python']}, torch {circumstances['torch']}, "
        f"abbe {circumstances['abbe']} at commit {circumstances['commit']}\n\n`{circumstances['command']}`\n"
    )


def _without_folders(value: Any) -> Any:
    """Settings with paths cut to their last part, since results are published. Relative paths in text are kept."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _without_folders(getattr(value, name)) for name in names})
    if isinstance(value, tuple):
        return tuple(map(_without_folders, value))
    if isinstance(value, Path):
        return Path(value.name)
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _commit() -> str:
    """The commit of the checkout this code is in, with "+" if it has changes; "none" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
