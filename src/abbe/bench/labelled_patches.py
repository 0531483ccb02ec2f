"""Labelled patches of a folder or zip with index.csv, as LC25000 is packed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from abbe.data.labelled_images import LabelledImage, expand, find_images, read_images, sources_sha256
from abbe.data.textfiles import read_csv
from abbe.errors import InputError, SlideError, TableError


@dataclass(frozen=True)
class LabelledPatches:
    """patches: uint8 [N, H, W, 3].   classes, groups: [N]; a group must not be split between folds.

    sha256: of each file read.   left_out: {image: reason} of those that could not be read.
    """

    patches: NDArray[np.uint8]
    classes: NDArray[np.str_]
    groups: NDArray[np.str_]
    sha256: dict[str, str]
    left_out: dict[str, str]


def read_patches(path: Path) -> LabelledPatches:
    """Patches of a folder or zip with index.csv (class, file, group, sha256), in the order of the index.

    A file is in <class>.zip or <class>/; groups are numbered within a class. Altered or undecodable images are left
    out. Raises InputError for empty values in a row, and for patches that are missing, not listed or of other sizes.
    """
    with _index(path) as index:
        table = read_csv(index)
        table.filled(["class", "file", "group", "sha256"])
        order = {(row["class"], row["file"]): place for place, row in enumerate(table.rows)}
        sources = expand([path])
        found, _ = find_images(sources, list(dict.fromkeys(row["class"] for row in table.rows)), index)
        hashes = sources_sha256(sources, index)
    found.sort(key=lambda image: order[image.cls, image.file])
    images, kept, left_out = [], [], {}
    side = _side(found)
    try:
        for image, pixels in read_images(found, side, resize=False):
            if isinstance(pixels, SlideError):
                left_out[image.name] = pixels.reason
                continue
            images.append(pixels)
            kept.append(image)
    except InputError as error:
        raise TableError(f"{str(error).partition(';')[0]}; all patches must be square and of one size") from error
    if not kept:
        raise TableError(
            f"{path}: none of {len(found)} patches can be read; {found[0].name}: {left_out[found[0].name]}"
        )
    classes = np.array([image.cls for image in kept])
    groups = np.array([f"{image.cls}/{image.group}" for image in kept])
    return LabelledPatches(np.stack(images), classes, groups, hashes, left_out)


@contextmanager
def _index(path: Path) -> Iterator[Path]:
    """Path of index.csv; that of a zip is extracted meanwhile, and errors name the zip."""
    missing = TableError(f"{path}: no index.csv in it; give a folder or zip with index.csv and the patches it lists")
    if not zipfile.is_zipfile(path):
        if not (path / "index.csv").is_file():
            raise missing
        yield path / "index.csv"
        return
    with TemporaryDirectory() as folder, zipfile.ZipFile(path) as packed:
        if "index.csv" not in packed.namelist():
            raise missing
        packed.extract("index.csv", folder)
        try:
            yield Path(folder, "index.csv")
        except InputError as error:
            raise TableError(str(error).replace(folder, str(path))) from error


def _side(images: Sequence[LabelledImage]) -> int:
    """Width in pixels of the first image that can be opened; 0 if none can."""
    for image in images:
        root = image.source if image.source.is_dir() else zipfile.Path(image.source)
        try:
            with (root / image.member).open("rb") as file, Image.open(file) as opened:
                return opened.width
        except (OSError, ValueError, SyntaxError, zipfile.BadZipFile):
            continue
    return 0
