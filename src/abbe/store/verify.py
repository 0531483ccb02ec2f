"""Check that no file of an output folder changed after it was written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from abbe.errors import InputError, StoreError
from abbe.store.commit import SIDECAR, state
from abbe.store.walk import files_below

MEANING = {
    "missing": "the file is missing but its sidecar exists",
    "unsigned": "foreign: it has no sidecar and cannot be checked",
    "torn": "its size differs from the size in the sidecar",
    "altered": "its hash differs from the hash in the sidecar",
    "temporary": "left by a run that was stopped; safe to remove",
    "sidecar": "its sidecar cannot be read",
}


def verify(folder: str | Path) -> tuple[Counter[str], list[tuple[str, str]]]:
    """(number of files per state, [(path relative to `folder`, state) of each file that is not done]); skips links.

    Raises InputError if the folder does not exist or cannot be read.
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
