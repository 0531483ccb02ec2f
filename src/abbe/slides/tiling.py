"""Which rectangles of a slide become patches: the level to read, sizes in level-0 pixels, a lattice over the tissue.

This module runs in the reader's child process: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abbe.errors import SlideError

MPP_RANGE = (0.05, 10.0)  # microns a pixel: outside, a resolution is a slip (a scanner's dpi tag, a unit mixed up)
SAME_SCALE = 0.05  # a level this near the target is read as it is: interpolation would blur more than the scale errs
MIN_TISSUE = 0.3  # share of a patch that must be tissue
_SQUARE = 0.02  # relative difference of the two mpp values that a slide may state


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Patches of one slide.

    level: pyramid level to read.   read_size: side to read there, in that level's pixels; resized to the patch size.
    patch_size_level0, stride_level0: level-0 pixels.   coords: int64 [N, 2], top-left, level-0 pixels, raster order.
    """

    level: int
    read_size: int
    patch_size_level0: float
    stride_level0: float
    coords: NDArray[np.int64]


def slide_mpp(stated_x: str | None, stated_y: str | None, override: float | None) -> float:
    """Microns a level-0 pixel, from what the slide states or from the user.

    Raises SlideError (stage geometry) where it is missing, absurd, or differs between x and y.
    """
    if override is not None:
        return _sane(override, "--override-mpp")
    if stated_x is None or stated_y is None:
        raise SlideError("geometry", "the slide does not say its microns a pixel; give them with --override-mpp")
    try:
        x, y = float(stated_x), float(stated_y)
    except ValueError as error:
        raise SlideError(
            "geometry", f"the slide's mpp is {stated_x!r}, {stated_y!r}, no number; give it with --override-mpp"
        ) from error
    x, y = _sane(x, "the slide's mpp-x"), _sane(y, "the slide's mpp-y")
    if abs(x - y) > _SQUARE * max(x, y):
        raise SlideError("geometry", f"the slide's pixels are not square ({x:g} × {y:g} µm); give --override-mpp")
    return (x + y) / 2


def plan_tiles(
    size_level0: tuple[int, int],
    mpp: float,
    downsamples: Sequence[float],
    *,
    target_mpp: float,
    patch_size: int,
    overlap: int,
    mask: NDArray[np.bool_],
    mask_downsample: float,
    min_tissue: float = MIN_TISSUE,
) -> TilePlan:
    """Patches of `patch_size` pixels at `target_mpp` on a lattice from (0, 0), those that lie on tissue.

    size_level0: (width, height).   downsamples: of each level, level-0 pixels a pixel.
    mask: bool [h, w], tissue; mask_downsample: level-0 pixels a mask pixel.   Patches lie wholly inside the slide.

    Raises SlideError (stage geometry) where the slide is coarser than the target: patches are never enlarged.
    """
    level, read_size = choose_level(mpp, downsamples, target_mpp=target_mpp, patch_size=patch_size)
    size = read_size * downsamples[level]
    stride = size * (patch_size - overlap) / patch_size
    width, height = size_level0
    x = np.floor(np.arange(0, max(width - size, -1) + 1e-6, stride)).astype(np.int64)
    y = np.floor(np.arange(0, max(height - size, -1) + 1e-6, stride)).astype(np.int64)
    coords = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    covered = tissue_share(coords, size, mask, mask_downsample)
    return TilePlan(level, read_size, size, stride, coords[covered >= min_tissue])


def choose_level(mpp: float, downsamples: Sequence[float], *, target_mpp: float, patch_size: int) -> tuple[int, int]:
    """(level, read_size): the coarsest level still fine enough, and the pixels of it that make a patch's side.

    Raises SlideError (stage geometry) where even level 0 is coarser than the target.
    """
    relative = [mpp * d / target_mpp for d in downsamples]  # 1: a level at the target, above: a coarser one
    fine = [level for level, r in enumerate(relative) if r <= 1 + SAME_SCALE + 1e-9]
    if not fine:
        raise SlideError(
            "geometry", f"the slide has {mpp:g} µm a pixel, coarser than {target_mpp:g}; encode it with --mpp {mpp:g}"
        )
    level = max(fine, key=lambda number: downsamples[number])
    near = abs(relative[level] - 1) <= SAME_SCALE + 1e-9
    return level, patch_size if near else round(patch_size / relative[level])


def tissue_share(
    coords: NDArray[np.int64], size_px0: float, mask: NDArray[np.bool_], mask_downsample: float
) -> NDArray[np.float64]:
    """Share of each patch that is tissue, [N]. coords: [N, 2] level-0 pixels; size_px0: side in level-0 pixels."""
    height, width = mask.shape
    # A summed-area table answers each rectangle with four look-ups, however many patches there are.
    table = np.zeros((height + 1, width + 1))
    table[1:, 1:] = mask.cumsum(0).cumsum(1)
    start = np.floor(coords / mask_downsample).astype(int)
    stop = np.maximum(np.ceil((coords + size_px0) / mask_downsample).astype(int), start + 1)
    x0, x1 = np.clip(start[:, 0], 0, width), np.clip(stop[:, 0], 0, width)
    y0, y1 = np.clip(start[:, 1], 0, height), np.clip(stop[:, 1], 0, height)
    tissue = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return tissue / np.maximum((x1 - x0) * (y1 - y0), 1)


def _sane(mpp: float, name: str) -> float:
    low, high = MPP_RANGE
    if not low <= mpp <= high:  # NaN fails too
        raise SlideError(
            "geometry",
            f"{name} is {mpp:g} µm a pixel, outside {low:g}–{high:g}; give the right one with --override-mpp",
        )
    return mpp
