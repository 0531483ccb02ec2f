"""What every dated result says: when, on what, by which code and command. Written as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from abbe.config import from_dict, only, to_flags
from abbe.store.commit import to_json
from abbe.version import __version__


def circumstances(verb: str, kind: type | None = None, settings: Any = None) -> dict[str, Any]:
    """Date, hardware, versions, commit, command and settings of a benchmark.

    verb: such as "bench needle".   settings: of the dataclass `kind`; every one is recorded, and those that differ from
    their default stand in the command. `settings_of` reads them back.
    """
    flags = [] if kind is None else to_flags(kind, settings)
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": " ".join(["abbe", verb, *flags]),
        "settings": {} if kind is None else _without_folders(only(kind, settings)),
        "abbe": __version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def settings_of(kind: type, circumstances: dict[str, Any], **changed: Any) -> Any:
    """The settings a result was made with, to make it again; `changed` supplies folders, which are not recorded."""
    settings = from_dict(kind, circumstances["settings"], circumstances["command"])
    return dataclasses.replace(settings, **changed)


def write_result(folder: Path, name: str, result: dict[str, Any], markdown: str) -> Path:
    """Write <date>-<name>.json and .md into `folder`; returns the Markdown's path.

    Plain files without sidecars: they are meant to be committed to a repository, whose hashes they get.
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
    """Plain JSON values with paths cut to their last part: results are published, folders are not."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.sep in value else value


def _commit() -> str:
    """The commit of the checkout this code lies in, with "+" where it has changes; "none" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
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
