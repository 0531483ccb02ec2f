"""What every dated result says: when, on what, by which code and command. Written as JSON and as Markdown."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from abbe import __version__
from abbe.store.commit import to_json


def circumstances(command: str) -> dict[str, Any]:
    """Date, hardware, versions, commit and command of a benchmark."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": command,
        "abbe": __version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


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
