"""Which slides a command line means, what their ids are, and which files they consist of."""

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

# What OpenSlide may read. A file with another suffix can still be named on the command line.
SUFFIXES = (
    ".bif", ".btf", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu",
)  # fmt: skip
_DICOM_SUFFIXES = (".dcm", "")


@dataclass(frozen=True)
class FoundSlide:
    """One slide.

    path: what OpenSlide opens.   files: all files of the slide, `path` first.
    problem: why it is not a regular file, else "".   named: whether the user named it, rather than its folder.
    """

    slide_id: str
    path: Path
    files: tuple[Path, ...]
    problem: str = ""
    named: bool = False


def find_slides(paths: Sequence[Path]) -> list[FoundSlide]:
    """Every slide named or found in a folder, in order, each with a unique id.

    The id is the file's stem. DICOM files of one series in one folder are one slide, called after the folder; several
    such series in a folder are called after the folder and their SeriesInstanceUID; a series of a single file is called
    after the file. Slides that would share an id are called by their path below the folder given (or, if that is the
    same too, below their nearest common folder), suffix included, with `__` for `/`.

    Folders are searched recursively; links are followed, hidden files and folders left out. An entry with a slide's
    suffix that is not a regular file (a pipe, a dangling link, a folder without slides) is returned with its `problem`.

    Raises InputError for a path that does not exist, and for a folder that cannot be read or contains no slide.
    """
    found: dict[str, tuple[FoundSlide, Path, str]] = {}  # absolute path → slide, its label, the label below the folder
    series: dict[Path, dict[str, list[Path]]] = {}
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
            slide, label = _slide(path, series)
            inside = path is not given and label != given
            name = str(label.relative_to(given)) if inside else _absolute(label).name
            # A link and its target stay two slides: users may rename slides by links.
            found.setdefault(str(_absolute(slide.path)), (replace(slide, named=path is given), label, name))
    if not found:
        raise InputError("no slides given; name slides, or folders of slides")
    stems = Counter(slide.slide_id for slide, _, _ in found.values())
    ids = {key: slide.slide_id if stems[slide.slide_id] == 1 else name for key, (slide, _, name) in found.items()}
    times = Counter(ids.values())
    clashes = [key for key, name in ids.items() if times[name] > 1]
    if clashes:
        labels = {key: _absolute(found[key][1]) for key in clashes}
        common = os.path.commonpath([label.parent for label in labels.values()])
        ids |= {key: os.path.relpath(label, common) for key, label in labels.items()}
    ids = {key: printable(name).replace(os.sep, "__") for key, name in ids.items()}
    if len(set(ids.values())) < len(ids):
        raise InputError("two slides have the same id; rename one of them")
    return [replace(found[key][0], slide_id=name) for key, name in ids.items()]


def _slide(path: Path, known: dict[Path, dict[str, list[Path]]]) -> tuple[FoundSlide, Path]:
    """The slide that `path` is or belongs to, and the path it is called after. known: DICOM series by folder."""
    problem = _problem(path)
    if problem:
        return FoundSlide(path.stem, path, (path,), problem), path
    uid = series_uid(path) if path.suffix.lower() in _DICOM_SUFFIXES else None
    if uid is None:
        return FoundSlide(path.stem, path, (path, *companions(path))), path
    if path.parent not in known:
        known[path.parent] = dicom_series(path.parent)
    series = known[path.parent]
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
    except OSError as error:  # a name too long, or a parent folder without permission
        if os.path.lexists(path):  # a link to such a path gets a row of its own
            return False
        raise InputError(f"{path}: cannot be accessed ({error.strerror})") from error


def _problem(path: Path) -> str:
    """Why `path` cannot be a slide; "" for a regular file. Nothing is opened: a pipe would block."""
    try:
        if path.is_file():
            return ""
        if path.is_dir():
            return "a folder that contains no further slides"
    except OSError as error:
        return f"cannot be accessed ({error.strerror})"
    if path.is_symlink():
        return f"a link to a path that does not exist ({path.readlink()})"
    return "not a regular file (a pipe, a socket or a device)"


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


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
