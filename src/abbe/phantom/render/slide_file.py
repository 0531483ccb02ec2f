"""Whole phantom slides: a layout becomes a pyramidal TIFF that OpenSlide opens, with its truth beside it.

A slide is rendered tile by tile, with one row of tiles of one level in memory at a time: each row is reduced into a
scratch file, from which the next level is written in the same way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from abbe.errors import InputError
from abbe.phantom.layout import Layout, pixel_classes
from abbe.phantom.render.capture import tiff_jpeg
from abbe.phantom.render.tissue import GLASS, MPP, TISSUE_CLASSES, Stain, render
from abbe.store.commit import commit, write_json

TILE = 512
MIN_LEVELS = 3
_SMALLEST = 512  # pixels; levels are added until the longer side is at most this
_PIXELS_PER_CM = round(10_000 / MPP)

Pixels = NDArray[np.uint8]


def write_phantom_slide(
    folder: str | Path,
    slide_id: str,
    layout: Layout,
    *,
    stain: Stain,
    seed: int,
    patch_size: int = 256,
    factor: int = 4,
) -> Path:
    """Write ``slides/<slide_id>.tiff`` and ``truth/<slide_id>.png`` and ``.json``; return the slide's path.

    The slide has JPEG tiles of 512 pixels with the stain's quality and subsampling, 0.5 microns per pixel, and at least
    three levels ``factor`` (2 or 4) apart. The PNG holds the class of most pixels of every patch (``GLASS`` included);
    the JSON names the classes and has the purity of every patch, the share of pixels that are of that class. Same
    arguments, same bytes. Raises InputError for a bad slide id, factor, or a raster too small.
    """
    folder = Path(folder)
    if not slide_id or Path(slide_id).name != slide_id or slide_id.startswith("."):
        raise InputError(f"write_phantom_slide: slide_id must be a plain file name, got {slide_id!r}")
    if factor not in (2, 4):
        raise InputError(f"write_phantom_slide: factor must be 2 or 4, got {factor}")
    rows, columns = layout.shape
    height, width = rows * patch_size, columns * patch_size
    if min(height, width) < factor ** (MIN_LEVELS - 1):
        raise InputError(f"write_phantom_slide: {width} x {height} pixels are too few for {MIN_LEVELS} levels")
    path = folder / "slides" / f"{slide_id}.tiff"
    shapes = _shapes(height, width, factor)
    votes = np.zeros((rows, columns, len(TISSUE_CLASSES) + 1), np.int32)  # the last bin is glass
    with (
        commit(path, format="phantom-slide", version=1) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=height * width > 2**32) as tiff,
        ExitStack() as scratch,
    ):
        files = [scratch.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in shapes[1:]]
        levels = [_ScratchImage(file, shape) for file, shape in zip(files, shapes[1:], strict=True)]
        tiles = _render_tiles(layout, stain, seed, patch_size, factor, levels[0], votes)
        _write_level(tiff, tiles, (height, width, 3), stain, scale=1)
        for number, (level, below) in enumerate(zip(levels, [*levels[1:], None], strict=True), 1):
            _write_level(tiff, _tiles(level, factor, below), (*level.shape, 3), stain, scale=factor**number)
    winner = votes.argmax(2)
    truth = np.where(winner == len(TISSUE_CLASSES), GLASS, winner).astype(np.uint8)
    purity = np.round(votes.max(2) / patch_size**2, 4)
    with commit(folder / "truth" / f"{slide_id}.png", format="abbe-truth-map", version=1) as temporary:
        Image.fromarray(truth).save(temporary)
    record = {
        "format": "abbe-truth",
        "version": 2,
        "slide_id": slide_id,
        "classes": list(TISSUE_CLASSES),
        "glass": GLASS,
        "patch_size": patch_size,
        "mpp": MPP,
        "shape": [rows, columns],
        "counts": {TISSUE_CLASSES[cls]: count for cls, count in Layout(truth).counts.items()},
        "seed": seed,
        "stain": asdict(stain),
        "purity": purity.tolist(),
    }
    write_json(folder / "truth" / f"{slide_id}.json", record, format="abbe-truth", version=2)
    return path


def _shapes(height: int, width: int, factor: int) -> list[tuple[int, int]]:
    """Height and width of every level, largest first."""
    shapes = [(height, width)]
    while len(shapes) < MIN_LEVELS or (max(shapes[-1]) > _SMALLEST and min(shapes[-1]) >= factor):
        shapes.append((shapes[-1][0] // factor, shapes[-1][1] // factor))
    return shapes


class _ScratchImage:
    """One level in a scratch file: rows are appended, and read back one row of tiles at a time."""

    def __init__(self, file: IO[bytes], shape: tuple[int, int]) -> None:
        self.shape = shape
        self._file, self._filled = file, 0

    def add(self, rows: Pixels) -> None:
        """Append rows, uint8 ``[n, width or more, 3]``, without what exceeds the image."""
        kept = rows[: self.shape[0] - self._filled, : self.shape[1]]
        self._file.write(np.ascontiguousarray(kept).data)
        self._filled += len(kept)

    def strips(self) -> Iterator[Pixels]:
        """The image from the top, up to ``TILE`` rows at a time."""
        self._file.seek(0)
        width = self.shape[1]
        for y in range(0, self.shape[0], TILE):
            count = min(TILE, self.shape[0] - y)
            data = self._file.read(count * width * 3)
            yield np.frombuffer(data, np.uint8).reshape(count, width, 3)


def _render_tiles(
    layout: Layout,
    stain: Stain,
    seed: int,
    patch_size: int,
    factor: int,
    below: _ScratchImage,
    votes: NDArray[np.int32],
) -> Iterator[Pixels]:
    """Tiles of level 0 in raster order; those at the right and lower border exceed the slide.

    Fills the next level ``below``, and counts the pixels of each class of each patch in ``votes``.
    """
    height, width = layout.shape[0] * patch_size, layout.shape[1] * patch_size
    for y in range(0, height, TILE):
        strip = []
        for x in range(0, width, TILE):
            classes = pixel_classes(layout, x, y, TILE, TILE, patch_size, seed)
            _count(votes, classes[: height - y, : width - x], x, y, patch_size)
            strip.append(render(x, y, TILE, TILE, classes, stain=stain, seed=seed))
        below.add(_reduced(np.concatenate(strip, axis=1), factor))
        yield from strip


def _count(votes: NDArray[np.int32], classes: Pixels, x: int, y: int, patch_size: int) -> None:
    """Add the classes of a tile's pixels to the votes ``[rows, cols, bins]`` of the patches it covers."""
    bins = votes.shape[2]
    top, left = y // patch_size, x // patch_size
    rows = (np.arange(y, y + classes.shape[0]) // patch_size - top)[:, None]
    columns = (np.arange(x, x + classes.shape[1]) // patch_size - left)[None, :]
    down, across = int(rows[-1, 0]) + 1, int(columns[0, -1]) + 1
    cells = (rows * across + columns) * bins + np.minimum(classes, bins - 1)
    counts = np.bincount(cells.ravel(), minlength=down * across * bins).reshape(down, across, bins)
    votes[top : top + down, left : left + across] += counts.astype(np.int32)


def _reduced(image: Pixels, factor: int) -> Pixels:
    """Rounded means over blocks of ``factor`` x ``factor`` pixels; incomplete blocks are dropped."""
    height, width = (max(1, side // factor) for side in image.shape[:2])
    blocks = image[: height * factor, : width * factor].astype(np.uint16)
    down = blocks.reshape(height, -1, *blocks.shape[1:]).sum(1, dtype=np.uint16)
    total = down.reshape(height, width, -1, 3).sum(2, dtype=np.uint16)
    area = factor * factor
    return ((total + area // 2) // area).astype(np.uint8)


def _tiles(level: _ScratchImage, factor: int, below: _ScratchImage | None) -> Iterator[Pixels]:
    """Full tiles of a level in raster order, padded at the border by repeating the last row and column."""
    for strip in level.strips():
        if below is not None:
            below.add(_reduced(strip, factor))
        height, width = strip.shape[:2]
        padded = np.pad(strip, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
        for x in range(0, width, TILE):
            yield padded[:, x : x + TILE]


def _write_level(
    tiff: tifffile.TiffWriter, tiles: Iterator[Pixels], shape: tuple[int, ...], stain: Stain, *, scale: int
) -> None:
    """Write one level as a page of its own, the form of pyramid that OpenSlide's generic TIFF reader expects."""
    tiff.write(
        tiles,
        shape=shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",  # of the input; the page states that JPEG stores YCbCr
        **tiff_jpeg(stain),
        subfiletype=0 if scale == 1 else 1,
        resolution=(_PIXELS_PER_CM / scale, _PIXELS_PER_CM / scale),
        resolutionunit="CENTIMETER",
        software="abbe",
        description="Abbe phantom slide" if scale == 1 else None,
        metadata=None,
        maxworkers=1,  # threads would change the order of tiles, and so the bytes
    )
