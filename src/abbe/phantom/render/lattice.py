"""Jittered lattices of objects (nuclei, glands, fat cells), as seamless as the noise they are built on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abbe.phantom.render.noise import F32, U32, Index, Region, hashed, unit


@dataclass(frozen=True)
class Lattice:
    """A jittered lattice of objects, one per cell; all arrays ``[rows, cols]``.

    ix, iy: cell numbers, int64.  h: their hash.  jx, jy: offset of the object from its cell's centre in pixels.
    """

    region: Region
    cell: int
    ix: NDArray[np.int64]
    iy: NDArray[np.int64]
    h: U32
    jx: F32
    jy: F32

    @classmethod
    def over(cls, region: Region, cell: int, salt: int, jitter: float = 0.4) -> Lattice:
        """All cells whose objects may reach ``region``; an object reaches one cell size from its cell's centre."""
        fx, fy = region.x0 // cell - 1, region.y0 // cell - 1
        nx = (region.x0 + region.width - 1) // cell + 2 - fx
        ny = (region.y0 + region.height - 1) // cell + 2 - fy
        ix, iy = np.meshgrid(np.arange(fx, fx + nx), np.arange(fy, fy + ny))
        h = hashed(ix, iy, salt)
        spread = np.float32(2 * jitter * cell)
        half = np.float32(0.5)
        return cls(region, cell, ix, iy, h, (unit(h, 1) - half) * spread, (unit(h, 2) - half) * spread)

    def u(self, channel: int) -> F32:
        """Uniform [0, 1) for every object. Channels 1 and 2 are the jitter."""
        return unit(self.h, channel)

    def bell(self, channel: int) -> F32:
        """Roughly normal, sd 1, bounded at 2.45, for every object; uses ``channel`` and the next."""
        return (self.u(channel) + self.u(channel + 1) - 1) * 2.45

    def sample(self, field: F32, grown: Region, dx: int = 0, dy: int = 0) -> F32:
        """Values of ``field``, a raster over ``grown``, at the objects' centres plus (dx, dy), clipped to its edge."""
        x = np.rint(self.jx).astype(np.intp) + self.ix * self.cell + (self.cell // 2 + dx - grown.x0)
        y = np.rint(self.jy).astype(np.intp) + self.iy * self.cell + (self.cell // 2 + dy - grown.y0)
        return field[np.clip(y, 0, grown.height - 1), np.clip(x, 0, grown.width - 1)]

    def _crop(self, blocks: NDArray, shift: int) -> NDArray:
        """Blocks ``[rows, cell, cols, cell]`` that start ``shift`` pixels after cell 0, cut to the region."""
        flat = blocks.reshape(blocks.shape[0] * self.cell, blocks.shape[2] * self.cell)
        oy = self.region.y0 - (int(self.iy[0, 0]) * self.cell + shift)
        ox = self.region.x0 - (int(self.ix[0, 0]) * self.cell + shift)
        return flat[oy : oy + self.region.height, ox : ox + self.region.width]

    def ellipses(self, a: F32, b: F32, ux: F32, uy: F32, present: NDArray[np.bool_]) -> tuple[F32, Index]:
        """Squared elliptic distance (1 on the outline) to the nearest object, and that object's flat number.

        a, b: half axes in pixels, ``a`` along the unit vector ``(ux, uy)``, all ``[rows, cols]``. A pixel considers
        the four objects around it, so jitter plus half axis must be below the cell size.
        """
        far = np.float32(1e6)
        ia, ib = 1 / (a * a), 1 / (b * b)
        xx = np.where(present, ux * ux * ia + uy * uy * ib, far)
        yy = np.where(present, uy * uy * ia + ux * ux * ib, far)
        xy = np.where(present, 2 * ux * uy * (ia - ib), np.float32(0))
        ny, nx = self.h.shape[0] - 1, self.h.shape[1] - 1
        local = np.arange(self.cell, dtype=np.float32)
        number = np.arange(self.h.size, dtype=np.int32).reshape(self.h.shape)
        best = np.full((ny, self.cell, nx, self.cell), far * 10, np.float32)
        who = np.zeros(best.shape, np.int32)
        for j in (0, 1):
            for i in (0, 1):
                at = np.s_[j : j + ny, None, i : i + nx, None]
                dx = local - np.float32(i * self.cell) - self.jx[at]
                dy = local[:, None, None] - np.float32(j * self.cell) - self.jy[at]
                q = (xy[at] * dx) * dy
                q += xx[at] * dx * dx
                q += yy[at] * dy * dy
                np.copyto(who, number[at], where=q < best)
                np.minimum(best, q, out=best)
        half = self.cell // 2
        return self._crop(best, half), self._crop(who, half).astype(np.intp)

    def borders(self) -> tuple[F32, F32]:
        """Distances in pixels to the nearest and to the second nearest object (Worley's F1 and F2)."""
        ny, nx = self.h.shape[0] - 2, self.h.shape[1] - 2
        local = np.arange(self.cell, dtype=np.float32) - np.float32(self.cell // 2)
        far = np.float32(1e9)
        first = np.full((ny, self.cell, nx, self.cell), far, np.float32)
        second = first.copy()
        for j in range(3):
            for i in range(3):
                at = np.s_[j : j + ny, None, i : i + nx, None]
                dx = local - np.float32((i - 1) * self.cell) - self.jx[at]
                dy = local[:, None, None] - np.float32((j - 1) * self.cell) - self.jy[at]
                d = dx * dx + dy * dy
                np.minimum(second, np.maximum(first, d), out=second)
                np.minimum(first, d, out=first)
        return np.sqrt(self._crop(first, self.cell)), np.sqrt(self._crop(second, self.cell))


@dataclass(frozen=True)
class Cells:
    """A warped Voronoi tessellation: distances to the two nearest centres, offset from the nearest, and its hash."""

    f1: F32
    f2: F32
    dx: F32
    dy: F32
    h: U32


def warped_cells(region: Region, warp: tuple[F32, F32], cell: int, salt: int, jitter: float = 0.35) -> Cells:
    """Voronoi cells of about ``cell`` pixels, displaced by ``warp`` (in pixels, less than one cell)."""
    lattice = Lattice.over(region.grow(cell), cell, salt, jitter)
    columns = lattice.h.shape[1]
    px, py = lattice.jx.ravel() + np.float32(cell / 2), lattice.jy.ravel() + np.float32(cell / 2)

    def locate(start: int, length: int, shift: F32, first: int, axis: int) -> tuple[F32, Index]:
        position = np.arange(start, start + length)
        number = position // cell
        shape = (1, -1) if axis else (-1, 1)
        t = (position - number * cell).astype(np.float32).reshape(shape) + shift
        hop = np.floor(t * np.float32(1 / cell))
        return t - hop * np.float32(cell), hop.astype(np.intp) + (number - first).reshape(shape)

    tx, cx = locate(region.x0, region.width, warp[0], int(lattice.ix[0, 0]), 1)
    ty, cy = locate(region.y0, region.height, warp[1], int(lattice.iy[0, 0]), 0)
    here: Index = cy * columns + cx
    first = np.full(here.shape, np.float32(1e9))
    second = first.copy()
    who = here.copy()
    for j in (-1, 0, 1):
        for i in (-1, 0, 1):
            other = here + (j * columns + i)
            dx = tx - px[other]
            dx -= np.float32(i * cell)
            dy = ty - py[other]
            dy -= np.float32(j * cell)
            dx *= dx
            dy *= dy
            dx += dy
            np.minimum(second, np.maximum(first, dx), out=second)
            np.copyto(who, other, where=dx < first)
            np.minimum(first, dx, out=first)
    hop_y, hop_x = who // columns - cy, who % columns - cx
    dx = tx - px[who] - hop_x.astype(np.float32) * np.float32(cell)
    dy = ty - py[who] - hop_y.astype(np.float32) * np.float32(cell)
    return Cells(np.sqrt(first), np.sqrt(second), dx, dy, lattice.h.ravel()[who])
