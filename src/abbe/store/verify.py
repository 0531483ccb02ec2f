"""`abbe verify`: every missing, torn, altered or foreign file of an output folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from abbe.console import result
from abbe.errors import InputError, StoreError
from abbe.store.commit import SIDECAR, state

_SAID = {
    "missing": "its sidecar is here, the file is not",
    "unsigned": "foreign: no sidecar, so nothing says what it should be",
    "torn": "its size is not the one that was written",
    "altered": "its bytes are not the ones that were written",
    "temporary": "left by a run that was stopped; safe to remove",
    "sidecar": "the sidecar itself cannot be read",
}


@dataclass(frozen=True)
class Verify:
    """Check every file of an output folder against the hash written with it.

    Example:
      abbe verify out
    """

    folder: tyro.conf.Positional[Path]
    """folder of outputs"""
    json: bool = False
    """print the findings as JSON"""

    def run(self) -> int:
        counted, found = verify(self.folder)
        lines = [f"{path}: {_SAID[kind]}" for path, kind in found]
        text = "\n".join([*lines, f"{counted['done']} files whole, {len(found)} findings"])
        value = {"whole": counted["done"], "findings": [{"path": path, "kind": kind} for path, kind in found]}
        result(text, value, json_output=self.json)
        return int(bool(found))


def verify(folder: str | Path) -> tuple[Counter[str], list[tuple[str, str]]]:
    """(files by state, (path relative to `folder`, what is wrong) of each that is not done)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    counted: Counter[str] = Counter()
    found: list[tuple[str, str]] = []
    for path in sorted(_files(folder)):
        if path.name.endswith(SIDECAR):
            target = path.with_name(path.name.removesuffix(SIDECAR))
            kind = "done" if target.is_file() else "missing"
            if kind == "done":
                continue  # told of with the file itself
            path = target
        elif path.name.startswith(".") and ".tmp" in path.name:
            kind = "temporary"
        else:
            try:
                kind = state(path)
            except StoreError:
                kind = "sidecar"
        counted[kind] += 1
        if kind != "done":
            found.append((str(path.relative_to(folder)), kind))
    return counted, found


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path
