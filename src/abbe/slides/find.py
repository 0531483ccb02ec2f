"""Which slides a command line means, and what each is called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from abbe.errors import InputError

# What OpenSlide may read. A file of another kind can still be named one by one.
SUFFIXES = (
    ".bif",
    ".btf",
    ".czi",
    ".dcm",
    ".mrxs",
    ".ndpi",
    ".scn",
    ".svs",
    ".svslide",
    ".tif",
    ".tiff",
    ".vms",
    ".vmu",
)


def find_slides(paths: Sequence[Path]) -> dict[str, Path]:
    """slide_id → path of every slide named or found in a folder, in order. A slide's id is its stem.

    Where two share a stem, both are named by their path below the folder given (or, where that does not tell them
    apart, below the nearest folder common to them), with `__` for `/`, suffix included. Folders are searched to the
    bottom, links included; hidden files and folders are left out.

    Raises InputError for a path that does not exist, a folder that cannot be read, or where there is no slide at all.
    """
    found: dict[str, tuple[Path, str]] = {}  # absolute path → path as given, name below the folder given
    for given in paths:
        path = Path(given)
        if path.is_dir():
            for file in sorted(_slides_below(path)):
                found.setdefault(_key(file), (file, str(file.relative_to(path))))
        elif path.is_file():
            found.setdefault(_key(path), (path, path.name))
        else:
            raise InputError(f"{path}: no such slide or folder")
    if not found:
        where = ", ".join(str(path) for path in paths) or "nothing given"
        raise InputError(f"{where}: no slides found (a folder's files ending in {' '.join(SUFFIXES)})")
    stems = Counter(path.stem for path, _ in found.values())
    ids = {key: path.stem if stems[path.stem] == 1 else name for key, (path, name) in found.items()}
    times = Counter(ids.values())
    clashes = [key for key, name in ids.items() if times[name] > 1]
    if clashes:
        common = os.path.commonpath([Path(key).parent for key in clashes])
        ids |= {key: os.path.relpath(key, common) for key in clashes}
    named = {printable(name).replace(os.sep, "__"): found[key][0] for key, name in ids.items()}
    if len(named) < len(found):
        raise InputError("two slides come to the same id; rename one of them")
    return named


def _key(path: Path) -> str:
    return os.path.normpath(path.absolute())  # a link and what it points to stay two: a user may rename by links


def _slides_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be searched ({error.strerror})") from error

    seen = set()  # links to folders are followed; a loop of them ends here
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(place) / name
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                yield path


def printable(path: str | Path) -> str:
    """A path, or a text with paths in it, that any file can hold: bytes of a name that are no UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
