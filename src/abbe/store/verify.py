"""Every missing, torn, altered or foreign file of an output folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from abbe.errors import InputError, StoreError
from abbe.store.commit import SIDECAR, state

MEANING = {
    "missing": "its sidecar is here, the file is not",
    "unsigned": "foreign: no sidecar, so nothing says what it should be",
    "torn": "its size is not the one that was written",
    "altered": "its bytes are not the ones that were written",
    "temporary": "left by a run that was stopped; safe to remove",
    "sidecar": "the sidecar itself cannot be read",
}


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
