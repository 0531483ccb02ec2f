"""Which slides a command line means, what each is called, and which files it consists of."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abbe.errors import InputError
from abbe.slides.companions import companions, dicom_series, series_uid
from abbe.store.commit import printable
from abbe.store.walk import files_below

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
_DICOM_SUFFIXES = (".dcm", "")


@dataclass(frozen=True)
class FoundSlide:
    """One slide.

    path: what OpenSlide is given.   files: all it consists of, `path` first.
    odd: why it is none after all (no regular file), else "".   named: whether the user named it, not its folder.
    """

    slide_id: str
    path: Path
    files: tuple[Path, ...]
    odd: str = ""
    named: bool = False


def find_slides(paths: Sequence[Path]) -> list[FoundSlide]:
    """Every slide named or found in a folder, in order. A slide's id is its stem, and unlike all others.

    The DICOM files of one series in one folder are one slide, called by the folder; where several such series share
    it, by the folder and their SeriesInstanceUID. A series of one file is called by its stem like any file.

    Where two slides share an id, both are named by their path below the folder given (or, where that does not tell them
    apart, below the nearest folder common to them), with `__` for `/`, suffix included. Folders are searched to the
    bottom, links included; hidden files and folders are left out. What has a slide's suffix and is no regular file
    (a pipe, a link to nothing, a folder without slides) is found too, and says what is `odd`.

    Raises InputError for a path that does not exist, a folder that cannot be read or has no slide in it.
    """
    found: dict[str, tuple[FoundSlide, Path, str]] = {}  # key → slide, its label, its label below the folder given
    folders: dict[Path, dict[str, list[Path]]] = {}
    for given in map(Path, paths):
        if _is_dir(given):
            below = sorted(_slides_below(given))
            if not below:
                raise InputError(f"{given}: no slides found (a folder's files ending in {' '.join(SUFFIXES)})")
        elif os.path.lexists(given):
            below = [given]
        else:
            raise InputError(f"{given}: no such slide or folder")
        for path in below:
            slide, label = _slide(path, folders)
            inside = path is not given and label != given
            name = str(label.relative_to(given)) if inside else _absolute(label).name
            found.setdefault(_key(slide.path), (replace(slide, named=path is given), label, name))
    if not found:
        raise InputError("nothing given: name slides, or folders of slides")
    short = Counter(slide.slide_id for slide, _, _ in found.values())
    ids = {key: slide.slide_id if short[slide.slide_id] == 1 else name for key, (slide, _, name) in found.items()}
    times = Counter(ids.values())
    clashes = [key for key, name in ids.items() if times[name] > 1]
    if clashes:
        labels = {key: _absolute(found[key][1]) for key in clashes}
        common = os.path.commonpath([label.parent for label in labels.values()])
        ids |= {key: os.path.relpath(label, common) for key, label in labels.items()}
    named = {key: printable(name).replace(os.sep, "__") for key, name in ids.items()}
    if len(set(named.values())) < len(named):
        raise InputError("two slides come to the same id; rename one of them")
    return [replace(found[key][0], slide_id=name) for key, name in named.items()]


def _slide(path: Path, folders: dict[Path, dict[str, list[Path]]]) -> tuple[FoundSlide, Path]:
    """(the slide that `path` is or belongs to, the path it is called by). folders: series already looked up."""
    odd = _odd(path)
    if odd:
        return FoundSlide(path.stem, path, (path,), odd), path
    uid = series_uid(path) if path.suffix.lower() in _DICOM_SUFFIXES else None
    if uid is None:
        return FoundSlide(path.stem, path, (path, *companions(path))), path
    if path.parent not in folders:
        folders[path.parent] = dicom_series(path.parent)
    series = folders[path.parent]
    files = series.get(uid, [path])
    if len(files) == 1:
        return FoundSlide(path.stem, path, (path,)), path
    folder = _absolute(path).parent
    if sum(len(others) > 1 for others in series.values()) == 1:
        return FoundSlide(folder.name, files[0], tuple(files)), path.parent
    name = f"{folder.name}_{uid}"
    return FoundSlide(name, files[0], tuple(files)), path.parent / name


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name too long, a folder above that may not be entered
        if os.path.lexists(path):  # a link to such a place: a row
            return False
        raise InputError(f"{path}: cannot be looked at ({error.strerror})") from error


def _odd(path: Path) -> str:
    """Why something of a slide's name cannot be one; "" for a regular file. Nothing is opened: a pipe would wait."""
    try:
        if path.is_file():
            return ""
        if path.is_dir():
            return "a folder, and no slide in it that was not found elsewhere"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    if path.is_symlink():
        return f"a link to what is not there ({path.readlink()})"
    return "no regular file (a pipe, a socket or a device)"


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _key(path: Path) -> str:
    return str(_absolute(path))  # a link and what it points to stay two: a user may rename by links


def _slides_below(folder: Path) -> Iterator[Path]:
    """Slides, and folders with a slide's suffix that have no slide below them."""
    holding: set[Path] = set()
    suffixed = []
    for path in files_below(folder, links="once", folders=True):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises for a link whose target has too long a name
            suffixed.append(path)
        else:
            holding.update(path.parents)
            yield path
    yield from (path for path in suffixed if path not in holding)
