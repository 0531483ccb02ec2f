"""Labelled patch images in one folder per class or in zip files, optionally with a table of groups."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from abbe.data.textfiles import Csv, read_csv
from abbe.errors import InputError, SlideError, nearest
from abbe.store.commit import file_sha256
from abbe.store.walk import files_below

SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp")
_MODES = ("RGB", "RGBA", "P", "L")
_MAX_BYTES = 64 << 20  # per image file


@dataclass(frozen=True)
class LabelledImage:
    """An image: file `member` of the folder or zip `source`. Images of one group must stay in the same split."""

    source: Path
    member: str
    cls: str
    group: str
    sha256: str = ""

    @property
    def file(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def name(self) -> str:
        return f"{self.cls}/{self.file}"


def expand(sources: Sequence[str | Path]) -> list[Path]:
    """The given folders and zips that contain images, and all zips below the folders.

    Raises InputError if a source is neither a folder nor a zip, or if two sources have the same name.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            zips = sorted(path for path in files_below(source) if path.suffix == ".zip")
            holds = not zips or any(path.is_dir() for path in source.iterdir()) or _members(source)
            found += [*([source] if holds else []), *zips]
        elif zipfile.is_zipfile(source):
            found.append(source)
        else:
            raise InputError(f"{source}: neither a folder nor a zip; expected one folder per class, or zip files")
    names = [path.name for path in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"two sources have the name {twice[0]!r}; rename one")
    return found


def find_images(
    sources: Sequence[Path], classes: Sequence[str], index: Path | None
) -> tuple[list[LabelledImage], dict[str, int]]:
    """Images of the given classes sorted by class and file, and the number of skipped images per other class.

    The class of an image is the name of its parent folder, or of the source if it has none. With `index` (a csv with
    class, file, group and optionally sha256) every image needs a row; without it, every image is its own group.
    Raises InputError for a class without images, a duplicate file in a class, or images that do not match the index.
    """
    found: dict[tuple[str, str], LabelledImage] = {}
    others: dict[str, int] = {}
    for source in sources:
        for member in _members(source):
            cls = PurePosixPath(member).parent.name or (source.absolute().name if source.is_dir() else source.stem)
            if cls not in classes:
                others[cls] = others.get(cls, 0) + 1
                continue
            image = LabelledImage(source, member, cls, f"{cls}/{PurePosixPath(member).name}")
            if (image.cls, image.file) in found:
                first = found[cls, image.file]
                places = f"{first.source}: {first.member} and {source}: {member}"
                raise InputError(f"{image.name} is duplicated ({places}); rename one, or give only one of the folders")
            found[image.cls, image.file] = image
    there = {cls for cls, _ in found}
    for cls in classes:
        if cls not in there:
            known = [*there, *others]
            hint = nearest(cls, known) if known else "No images were found; expected one folder per class."
            raise InputError(f"no image of class {cls!r} in {', '.join(map(str, sources))}. {hint}")
    images = list(found.values()) if index is None else list(_grouped(found, read_csv(index), classes))
    return sorted(images, key=lambda image: (classes.index(image.cls), image.file)), others


def _members(source: Path) -> list[str]:
    if source.is_dir():
        paths = (path.relative_to(source).as_posix() for path in files_below(source, links="follow"))
    else:
        with zipfile.ZipFile(source) as file:
            paths = (info.filename for info in file.infolist() if not info.is_dir())
    kept = (path for path in paths if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(path).parts))
    return sorted(path for path in kept if path.lower().endswith(SUFFIXES))


def skipped_classes(others: dict[str, int]) -> list[str]:
    """A line that lists the skipped classes, if any."""
    named = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
    return [f"skipped images of other classes: {named}"] if named else []


def _grouped(
    found: dict[tuple[str, str], LabelledImage], table: Csv, classes: Sequence[str]
) -> Iterator[LabelledImage]:
    table.filled(["class", "file", "group"])
    listed: set[tuple[str, str]] = set()
    for number, row in enumerate(table.rows):
        key = row["class"], row["file"]
        if row["class"] not in classes:
            continue
        if key in listed:
            table.refuse(number, f"{key[0]}/{key[1]} is duplicated")
        if key not in found:
            table.refuse(number, f"{key[0]}/{key[1]} is not among the given patches")
        listed.add(key)
        image = found[key]
        yield LabelledImage(image.source, image.member, image.cls, row["group"], row.get("sha256", "").strip())
    missing = sorted(set(found) - listed)
    if missing:
        raise InputError(f"{table.path}: no row for {'/'.join(missing[0])} and {len(missing) - 1} more images")


def sources_sha256(sources: Sequence[Path], index: Path | None) -> dict[str, str]:
    """SHA-256 per source and of the index; for a folder, the hash of its images' names and hashes."""
    found = {source.name: _folder_sha256(source) if source.is_dir() else file_sha256(source) for source in sources}
    return found if index is None else {**found, index.name: file_sha256(index)}


def _folder_sha256(folder: Path) -> str:
    lines = [f"{member} {file_sha256(folder / member)}\n" for member in _members(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_images(
    images: Iterable[LabelledImage], side: int, *, resize: bool
) -> Iterator[tuple[LabelledImage, NDArray[np.uint8] | SlideError]]:
    """Read images as uint8 [side, side, 3]; an image that cannot be read yields its SlideError instead.

    With `resize`, square images of another size are resampled (antialiased, bicubic). Raises InputError for any other
    size.
    """
    zips: dict[Path, zipfile.ZipFile] = {}
    try:
        for image in images:
            try:
                pixels = _pixels(_bytes(image, zips))
            except SlideError as error:
                yield image, error
                continue
            yield image, _sized(pixels, image, side, resize=resize)
    finally:
        for file in zips.values():
            file.close()


def _bytes(image: LabelledImage, zips: dict[Path, zipfile.ZipFile]) -> bytes:
    try:
        if image.source.is_dir():
            path = image.source / image.member
            size = path.stat().st_size
        else:
            file = zips.setdefault(image.source, zipfile.ZipFile(image.source))
            size = file.getinfo(image.member).file_size
        if size > _MAX_BYTES:
            raise SlideError("read", f"the file has {size} bytes; the maximum is {_MAX_BYTES}")
        data = path.read_bytes() if image.source.is_dir() else file.read(image.member)
    except (OSError, zipfile.BadZipFile) as error:
        raise SlideError("read", str(error)) from error
    if image.sha256 and hashlib.sha256(data).hexdigest() != image.sha256:
        raise SlideError("read", "sha256 does not match the index; the file was altered")
    return data


def _pixels(data: bytes) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
    except UnidentifiedImageError as error:  # its message contains only the address of a buffer
        raise SlideError("read", "cannot be decoded (unknown image format)") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SlideError("read", f"cannot be decoded ({error})") from error
    if opened.mode not in _MODES:
        raise SlideError("read", f"image mode is {opened.mode}; expected 8-bit colour or grey")
    return opened.convert("RGB")


def _sized(pixels: Image.Image, image: LabelledImage, side: int, *, resize: bool) -> NDArray[np.uint8]:
    width, height = pixels.size
    if (width, height) == (side, side):
        return np.asarray(pixels)
    if resize and width == height:
        return np.asarray(pixels.resize((side, side), Image.Resampling.BICUBIC))
    remedy = "crop it to a square first" if width != height else "set --bank.patch-size, or use --bank.resize"
    raise InputError(f"{image.source}: {image.name} has {width} x {height} pixels, expected {side} x {side}; {remedy}")
