"""Find the feature files given on the command line, and their slide ids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abbe.errors import BagError, InputError
from abbe.store.commit import printable
from abbe.store.detect import SUFFIXES, ZARR, is_patches
from abbe.store.walk import files_below


@dataclass(frozen=True)
class FeatureFile:
    """One file (or .zarr store) and its slide id. skip: the reason to skip it, or ""."""

    slide_id: str
    path: Path
    skip: str = ""


def find_features(
    paths: Sequence[Path], *, leave_out: Path | None = None, pickled: Sequence[str] = ()
) -> list[FeatureFile]:
    """All given feature files and those in given folders, except below `leave_out`; `pickled`: additional suffixes.

    The slide id is the stem of the file. If several files have the same stem, their id is the path relative to their
    common folder, with suffix, and with `__` for `/`. CLAM writes two files per slide (`h5_files/x.h5`,
    `pt_files/x.pt`): the h5 is used and the other gets a reason to skip it, as do files of patches without features.
    Hidden files, sidecars and other suffixes are not listed.

    Raises InputError for a path that does not exist, folders without feature files, and two files with the same id.
    """
    if not paths:
        raise InputError("give at least one feature file or folder")
    wanted = {*SUFFIXES, *pickled}
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_dir() and not _is_store(path):
            below = sorted(files_below(path, is_whole=_is_store))
            below = [item for item in below if item.suffix.lower() in (*wanted, ZARR) and item.name != "outcomes.csv"]
            found += [item for item in below if leave_out is None or not _is_below(item, leave_out)]
        else:
            found.append(path)
    given = ", ".join(map(str, paths))
    if not found and any(leave_out is not None and _is_below(path, leave_out) for path in paths):
        raise InputError(f"{given}: is inside --out {leave_out}, which is not searched; use another --out")
    if not found:
        raise InputError(f"{given}: no feature files ({', '.join(sorted(wanted))}, {ZARR})")
    distinct: dict[str, Path] = {}
    for path in found:
        distinct.setdefault(os.path.normpath(path.absolute()), path)
    files = [FeatureFile(printable(path.stem), path, _why_skip(path)) for path in distinct.values()]
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        if not file.skip:
            by_stem.setdefault(file.slide_id, []).append(file.path)
    files = [
        file if file.skip or len(by_stem[file.slide_id]) == 1 else _with_path_as_id(file, by_stem[file.slide_id])
        for file in files
    ]
    by_id: dict[str, Path] = {}
    for file in files:
        other = file.path if file.skip else by_id.setdefault(file.slide_id, file.path)
        if other != file.path:
            raise InputError(f"{other} and {file.path} have the same id, {file.slide_id!r}; rename one of them")
    return files


def _with_path_as_id(file: FeatureFile, same_stem: list[Path]) -> FeatureFile:
    folder = os.path.commonpath([path.absolute().parent for path in same_stem])
    return replace(file, slide_id=printable("__".join(file.path.absolute().relative_to(folder).parts)))


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _is_store(path: Path) -> bool:
    return path.suffix.lower() == ZARR


def _why_skip(path: Path) -> str:
    if not path.is_file() and not (path.is_dir() and _is_store(path)):
        # Do not open it: reading from a pipe may never return.
        return "a broken link" if path.is_symlink() else "not a regular file (a pipe, a socket or a device)"
    if path.parent.name == "pt_files" and (path.parent.parent / "h5_files" / f"{path.stem}.h5").is_file():
        return "h5_files has the same features with their coordinates"
    try:
        return "patches without features" if is_patches(path) else ""
    except BagError:
        return ""  # reported when the file is read
