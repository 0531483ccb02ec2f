"""Which feature files a command line means, and what each slide is called."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abbe.errors import BagError, InputError
from abbe.store.commit import SIDECAR, printable
from abbe.store.detect import SUFFIXES, ZARR, is_patches


@dataclass(frozen=True)
class FeatureFile:
    """One file (or .zarr store) with the name of its slide. odd: why it is left out, else ""."""

    slide_id: str
    path: Path
    odd: str = ""


def find_features(
    paths: Sequence[Path], *, leave_out: Path | None = None, pickled: Sequence[str] = ()
) -> list[FeatureFile]:
    """Every feature file named, or found in a folder outside `leave_out`; `pickled`: suffixes besides the usual ones.

    A slide is called by the stem of its file; where two share one, by the path below the nearest folder common to them,
    suffix included, with `__` for `/`. Of CLAM's two files of a slide (`h5_files/x.h5`, `pt_files/x.pt`) the h5 is
    taken. Files of patches are listed as left out; hidden files, sidecars and other suffixes are not listed.

    Raises InputError for a path that does not exist, folders without feature files, two files that come to one id.
    """
    if not paths:
        raise InputError("give at least one feature file or folder")
    wanted = {*SUFFIXES, *pickled}
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_dir() and path.suffix.lower() != ZARR:
            below = [item for item in sorted(_below(path)) if item.suffix.lower() in (*wanted, ZARR)]
            found += [item for item in below if leave_out is None or not _within(item, leave_out)]
        else:
            found.append(path)
    if not found and any(leave_out is not None and _within(path, leave_out) for path in paths):
        raise InputError(
            f"{', '.join(map(str, paths))}: lies in --out {leave_out}, which is not searched; another --out"
        )
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no feature files ({', '.join(sorted(wanted))}, {ZARR})")
    once: dict[str, Path] = {}
    for path in found:
        once.setdefault(os.path.normpath(path.absolute()), path)
    files = [FeatureFile(printable(path.stem), path, _odd(path)) for path in once.values()]
    sharing: dict[str, list[Path]] = {}
    for file in files:
        if not file.odd:
            sharing.setdefault(file.slide_id, []).append(file.path)
    files = [
        file if file.odd or len(sharing[file.slide_id]) == 1 else _told_apart(file, sharing[file.slide_id])
        for file in files
    ]
    called: dict[str, Path] = {}
    for file in files:
        other = file.path if file.odd else called.setdefault(file.slide_id, file.path)
        if other != file.path:
            raise InputError(f"{other} and {file.path} come to the same id, {file.slide_id!r}; rename one of them")
    return files


def _told_apart(file: FeatureFile, sharing: list[Path]) -> FeatureFile:
    folder = os.path.commonpath([path.absolute().parent for path in sharing])
    return replace(file, slide_id=printable("__".join(file.path.absolute().relative_to(folder).parts)))


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        stores = [name for name in folders if name.lower().endswith(ZARR)]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in stores]
        shown = [name for name in names if not name.startswith(".") and not name.endswith(SIDECAR)]
        yield from (Path(place) / name for name in (*stores, *shown) if name != "outcomes.csv")


def _odd(path: Path) -> str:
    if not path.is_file() and not (path.is_dir() and path.suffix.lower() == ZARR):
        # Nothing is opened: a pipe would wait for ever.
        return "a link to what is not there" if path.is_symlink() else "no regular file (a pipe, a socket or a device)"
    if path.parent.name == "pt_files" and (path.parent.parent / "h5_files" / f"{path.stem}.h5").is_file():
        return "the same features stand in h5_files, with their coordinates"
    try:
        return "patches without features" if is_patches(path) else ""
    except BagError:
        return ""  # an outcome of reading it
