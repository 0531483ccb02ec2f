"""Layouts: which patch of a slide has which class, and the class map of pixels that follows from it.

:class:`Layout` holds the class of every patch. :mod:`abbe.phantom.tasks` builds one for each task from four parts:
tissue pieces (:func:`tissue_mask`), regions of normal tissue (:func:`regions`), connected deposits
(:func:`grown_from`) and smooth noise (:func:`smooth`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from abbe.errors import InputError
from abbe.phantom.render.noise import Region, fbm, key
from abbe.phantom.render.tissue import GLASS

_FILL = 0.45  # share of a raster that is tissue, unless the shape of the raster is given
_WARP_SD, _WARP_MAX = 0.13, 0.34  # displacement of class borders, in patches
_MAX_REGIONS = 256

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """The truth of a slide by patch. classes: uint8 ``[rows, cols]``, ``GLASS`` where there is no tissue."""

    classes: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.classes.ndim != 2 or self.classes.dtype != np.uint8:
            raise InputError(
                f"Layout: classes must be uint8 [rows, cols], got {self.classes.dtype} {self.classes.shape}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the raster."""
        rows, columns = self.classes.shape
        return rows, columns

    @cached_property
    def tissue(self) -> Mask:
        """Where there is tissue, bool ``[rows, cols]``."""
        return self.classes != GLASS

    @cached_property
    def coords(self) -> NDArray[np.int64]:
        """Tissue patches in raster order, (x, y) in patch units, int64 ``[N, 2]``."""
        return np.argwhere(self.tissue)[:, ::-1].copy()

    @cached_property
    def patch_classes(self) -> NDArray[np.uint8]:
        """Class of every tissue patch in the order of ``coords``, uint8 ``[N]``."""
        return self.classes[self.tissue]

    @cached_property
    def counts(self) -> dict[int, int]:
        """Number of patches of each class that occurs."""
        values, numbers = np.unique(self.patch_classes, return_counts=True)
        return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def tissue_with_deposit(
    rng: np.random.Generator, n: int, size: int, shape: tuple[int, int] | None = None, *, ragged: float = 1.2
) -> tuple[Mask, Mask]:
    """Tissue of ``n`` patches in one to three pieces, and one connected deposit of ``size`` >= 1 of them."""
    tissue = tissue_mask(rng, n, shape, pieces=int(rng.integers(1, 4)))
    deposit = deposit_in(rng, tissue, size, ragged)
    if deposit is None:  # no piece is large enough, so draw tissue in one piece
        tissue = grown_from(rng, np.ones(tissue.shape, bool), (tissue.shape[0] // 2, tissue.shape[1] // 2), n)
        deposit = deposit_in(rng, tissue, size, ragged)
        assert deposit is not None
    return tissue, deposit


def pixel_classes(
    layout: Layout, x0: int, y0: int, width: int, height: int, patch_size: int, seed: int
) -> NDArray[np.uint8]:
    """Class of every pixel of a rectangle, uint8 ``[height, width]``: the patch map with ragged borders.

    Pixel (0, 0) is the corner of the first patch; outside the raster is glass. A border moves by at most 0.34 patches,
    so most pixels of a patch normally keep its class. A rectangle and its tiles get the same pixels.
    """
    if patch_size < 4:
        raise InputError(f"pixel_classes: patch_size must be at least 4, got {patch_size}")
    if width < 1 or height < 1:
        raise InputError(f"pixel_classes: width and height must be at least 1, got {width} x {height}")
    rows, columns = layout.shape
    reach = int(np.ceil(_WARP_MAX * patch_size))
    top, left = (y0 - reach) // patch_size, (x0 - reach) // patch_size
    bottom, right = (y0 + height + reach) // patch_size, (x0 + width + reach) // patch_size
    near = np.full((bottom - top + 1, right - left + 1), GLASS, np.uint8)
    ya, yb, xa, xb = max(top, 0), min(bottom + 1, rows), max(left, 0), min(right + 1, columns)
    if ya < yb and xa < xb:
        near[ya - top : yb - top, xa - left : xb - left] = layout.classes[ya:yb, xa:xb]
    if (near == near[0, 0]).all():  # no border within reach, as in most of a slide
        return np.full((height, width), near[0, 0], np.uint8)
    region = Region(x0, y0, width, height)

    def source(axis: int, start: int, length: int, first: int) -> NDArray[np.intp]:
        warp = fbm(region, max(2, patch_size // 2), key(seed, 71, axis), octaves=4)
        warp *= np.float32(_WARP_SD * patch_size)
        np.clip(warp, -reach, reach, out=warp)
        position = np.arange(start, start + length)
        offset = (position % patch_size).astype(np.float32) + np.float32(0.5)
        whole = position // patch_size - first
        if axis == 0:
            offset, whole = offset[:, None], whole[:, None]
        return np.floor((offset + warp) * np.float32(1 / patch_size)).astype(np.intp) + whole

    return near[source(0, y0, height, top), source(1, x0, width, left)]


def smooth(rng: np.random.Generator, rows: int, columns: int, cell: float) -> NDArray[np.float64]:
    """Smooth noise on the raster, ``[rows, cols]``, mean 0, sd about 1, features of about ``cell`` patches."""

    def weights(length: int) -> NDArray[np.float64]:
        nodes = int(length / cell) + 4
        t = np.abs((np.arange(length)[:, None] + rng.random()) / cell + 1 - np.arange(nodes)[None, :])
        w = np.where(t < 1, 2 / 3 - t * t + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        return w / np.sqrt((w * w).sum(1, keepdims=True))

    left, right = weights(rows), weights(columns)
    return left @ rng.standard_normal((left.shape[1], right.shape[1])) @ right.T


def tissue_mask(rng: np.random.Generator, n: int, shape: tuple[int, int] | None, *, pieces: int) -> Mask:
    """Tissue of exactly ``n`` patches: the highest values of ``pieces`` bumps plus smooth noise, bool [rows, cols]."""
    if shape is None:
        stretch = float(rng.uniform(0.6, 1.6))
        rows = max(2, round((n / _FILL * stretch) ** 0.5))
        shape = rows, max(2, -(-round(n / _FILL) // rows))
    rows, columns = shape
    y = ((np.arange(rows) + 0.5) / rows)[:, None]
    x = ((np.arange(columns) + 0.5) / columns)[None, :]
    # Pieces lie in a row along the longer side, like sections on a slide.
    height = np.full(shape, -np.inf)
    for piece in range(pieces):
        along, across = (piece + 0.5) / pieces + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.08, 0.08)
        cy, cx = (along, across) if rows > columns else (across, along)
        ry, rx = rng.uniform(0.75, 1.25, 2) * ((0.5 / pieces, 0.5) if rows > columns else (0.5, 0.5 / pieces))
        tilt = rng.uniform(-0.5, 0.5)
        u, v = (x - cx) / rx, (y - cy) / ry
        height = np.maximum(height, -((u + tilt * v) ** 2) - (v - tilt * u) ** 2)
    coarse = max(2.0, 0.18 * (rows * columns) ** 0.5)
    height = height + 0.32 * smooth(rng, rows, columns, coarse) + 0.1 * smooth(rng, rows, columns, coarse / 3)
    # Keep tissue off the edge of the raster where there is room, so that no piece is cut.
    edge = np.minimum(np.minimum(x, 1 - x) * columns, np.minimum(y, 1 - y) * rows)
    height = height - 2 * np.exp(-edge / 1.2)
    order = np.argsort(-np.round(height, 9), axis=None, kind="stable")
    tissue = np.zeros(rows * columns, bool)
    tissue[order[:n]] = True
    return tissue.reshape(shape)


def regions(rng: np.random.Generator, tissue: Mask, classes: tuple[int, ...]) -> NDArray[np.uint8]:
    """A class map, uint8 ``[rows, cols]``: tissue in contiguous regions of these classes, glass elsewhere.

    Proportions are drawn per slide (Dirichlet). Regions are warped Voronoi cells with one class each.
    """
    rows, columns = tissue.shape
    where = np.argwhere(tissue)
    count = int(np.clip(len(where) // 45, 4, _MAX_REGIONS))
    share = rng.dirichlet(np.full(len(classes), 0.9))
    middles = where[rng.integers(0, len(where), count)] + rng.uniform(-0.5, 0.5, (count, 2))
    chosen = rng.choice(np.array(classes, np.uint8), count, p=share)
    warped = where + 1.1 * np.stack([smooth(rng, rows, columns, 4.0)[tissue] for _ in range(2)], 1)
    warped += 0.5 * np.stack([smooth(rng, rows, columns, 1.6)[tissue] for _ in range(2)], 1)
    distance = (warped[:, :1] - middles[None, :, 0]) ** 2 + (warped[:, 1:] - middles[None, :, 1]) ** 2
    out = np.full(tissue.shape, GLASS, np.uint8)
    out[tissue] = chosen[np.round(distance, 9).argmin(1)]
    return out


def deposit_in(rng: np.random.Generator, tissue: Mask, size: int, ragged: float) -> Mask | None:
    """A connected deposit of ``size`` patches from a random start; None if every piece of tissue is smaller."""
    left = tissue.copy()
    while left.any():
        starts = np.argwhere(left)
        row, column = starts[rng.integers(len(starts))].tolist()
        grown = grown_from(rng, left, (row, column), size, ragged)
        if np.count_nonzero(grown) == size:
            return grown
        left &= ~grown  # this piece is too small
    return None


def grown_from(rng: np.random.Generator, inside: Mask, start: tuple[int, int], size: int, ragged: float = 1.2) -> Mask:
    """``size`` 4-connected patches of ``inside`` around ``start``; fewer if its piece is smaller.

    The frontier patch nearest to ``start`` joins next, after a random ``ragged`` patches on average are added to each
    distance.
    """
    rows, columns = inside.shape
    free = inside.ravel().tolist()
    noise = rng.exponential(ragged, inside.size).tolist()
    grown = np.zeros(inside.size, bool)
    first = start[0] * columns + start[1]
    frontier = [(0.0, first)]
    free[first] = False
    for _ in range(size):
        if not frontier:
            break
        _, here = heapq.heappop(frontier)
        grown[here] = True
        row, column = divmod(here, columns)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            there = r * columns + c
            if 0 <= r < rows and 0 <= c < columns and free[there]:
                free[there] = False
                away = ((r - start[0]) ** 2 + (c - start[1]) ** 2) ** 0.5
                heapq.heappush(frontier, (away + noise[there], there))
    return grown.reshape(inside.shape)
