"""Check that every file of an output folder is as it was written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from abbe.errors import InputError, StoreError
from abbe.store.commit import SIDECAR, state
from abbe.store.walk import files_below

MEANING = {
    "missing": "the file is missing, its sidecar is not",
    "unsigned": "foreign: it has no sidecar, so it cannot be checked",
    "torn": "its size differs from what was written",
    "altered": "its bytes differ from what was written",
    "temporary": "left by a run that was stopped; safe to remove",
    "sidecar": "its sidecar cannot be read",
}


def verify(folder: str | Path) -> tuple[Counter[str], list[tuple[str, str]]]:
    """(number of files in each state, (path relative to `folder`, state) of each that is not done); links are skipped.

    Raises InputError if there is no such folder, or it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    counted: Counter[str] = Counter()
    found: list[tuple[str, str]] = []
    for path in sorted(files_below(folder, hidden=True)):
        if not path.is_file() or path.is_symlink():
            continue
        if path.name.endswith(SIDECAR):
            target = path.with_name(path.name.removesuffix(SIDECAR))
            if target.is_file():
                continue  # checked together with the file
            path, kind = target, "missing"
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
