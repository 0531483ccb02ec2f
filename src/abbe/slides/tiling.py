"""Which squares of a slide become patches: the level to read, sizes in level-0 pixels, and a grid over the tissue.

This module runs in the reader's child process and must not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abbe.errors import SlideError

MPP_RANGE = (0.05, 10.0)  # microns per pixel; a value outside is a mistake (a dpi tag, a wrong unit)
SAME_SCALE = 0.05  # a level this close to the target is not resampled: that would blur more than the scale is off
MIN_TISSUE = 0.3  # share of a patch that must be tissue
_SQUARE = 0.02  # allowed relative difference between mpp-x and mpp-y


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Patches of one slide.

    level: pyramid level to read.   read_size: side read there, in pixels of that level, before resizing.
    patch_size_level0, stride_level0: level-0 pixels.   coords: int64 [N, 2], top-left, level-0 pixels, raster order.
    """

    level: int
    read_size: int
    patch_size_level0: float
    stride_level0: float
    coords: NDArray[np.int64]


def slide_mpp(stated_x: str | None, stated_y: str | None, override: float | None) -> float:
    """Microns per level-0 pixel, as stated by the slide or overridden by the user.

    Raises SlideError (stage geometry) if it is missing, outside MPP_RANGE, or different in x and y.
    """
    if override is not None:
        return _checked(override, "--override-mpp")
    if stated_x is None or stated_y is None:
        raise SlideError("geometry", "the slide does not state its microns per pixel; give them with --override-mpp")
    try:
        x, y = float(stated_x), float(stated_y)
    except ValueError as error:
        raise SlideError(
            "geometry", f"the slide's mpp is {stated_x!r}, {stated_y!r}, not a number; give it with --override-mpp"
        ) from error
    x, y = _checked(x, "the slide's mpp-x"), _checked(y, "the slide's mpp-y")
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
    """Patches of `patch_size` pixels at `target_mpp` on a grid from (0, 0), inside the slide and on tissue.

    size_level0: (width, height).   downsamples: level-0 pixels per pixel of each level.
    mask: tissue, bool [h, w].   mask_downsample: level-0 pixels per mask pixel.

    Raises SlideError (stage geometry) for a slide coarser than the target: patches are never enlarged.
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
    """The coarsest level that is fine enough, and the side of a patch in its pixels.

    Raises SlideError (stage geometry) if even level 0 is coarser than the target.
    """
    relative = [mpp * d / target_mpp for d in downsamples]  # above 1: coarser than the target
    fine = [level for level, r in enumerate(relative) if r <= 1 + SAME_SCALE + 1e-9]
    if not fine:
        raise SlideError(
            "geometry", f"the slide has {mpp:g} µm per pixel, coarser than {target_mpp:g}; encode it with --mpp {mpp:g}"
        )
    level = max(fine, key=lambda number: downsamples[number])
    near = abs(relative[level] - 1) <= SAME_SCALE + 1e-9
    return level, patch_size if near else round(patch_size / relative[level])


def tissue_share(
    coords: NDArray[np.int64], size_px0: float, mask: NDArray[np.bool_], mask_downsample: float
) -> NDArray[np.float64]:
    """Share of tissue in each patch, [N]. coords: [N, 2], level-0 pixels; size_px0: side in level-0 pixels."""
    height, width = mask.shape
    # A summed-area table: four look-ups per patch, whatever its size.
    table = np.zeros((height + 1, width + 1))
    table[1:, 1:] = mask.cumsum(0).cumsum(1)
    start = np.floor(coords / mask_downsample).astype(int)
    stop = np.maximum(np.ceil((coords + size_px0) / mask_downsample).astype(int), start + 1)
    x0, x1 = np.clip(start[:, 0], 0, width), np.clip(stop[:, 0], 0, width)
    y0, y1 = np.clip(start[:, 1], 0, height), np.clip(stop[:, 1], 0, height)
    tissue = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return tissue / np.maximum((x1 - x0) * (y1 - y0), 1)


def _checked(mpp: float, name: str) -> float:
    low, high = MPP_RANGE
    if not low <= mpp <= high:  # NaN fails too
        raise SlideError(
            "geometry",
            f"{name} is {mpp:g} µm per pixel, outside {low:g}–{high:g}; give the right one with --override-mpp",
        )
    return mpp
