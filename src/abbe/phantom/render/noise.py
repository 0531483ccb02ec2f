"""Seamless building blocks of procedural tissue: hashed lattices, value noise, smeared noise, jittered objects.

Everything here is a pure function of *world* pixel coordinates and a key, so a region computed in one go and the
same region computed tile by tile agree bit for bit. Two rules keep that true: no generator state (lattice nodes are
hashed, never drawn), and on pixels only operations that IEEE 754 rounds exactly (add, multiply, divide, square root),
never a vectorised sine or exponential whose last bit may depend on where in an array a pixel lies.

Arrays are float32 ``[height, width]`` unless said otherwise. Noise has mean 0 and a standard deviation of about 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]
Index = NDArray[np.intp]

_BSPLINE_SD = np.float32(0.277)  # sd of cubic B-spline interpolated uniform [-1, 1] nodes, mean over positions
_MASK64 = (1 << 64) - 1


class Region(NamedTuple):
    """A rectangle in world pixels."""

    x0: int
    y0: int
    width: int
    height: int

    def grow(self, margin: int) -> Region:
        """The rectangle with ``margin`` pixels more on every side."""
        return Region(self.x0 - margin, self.y0 - margin, self.width + 2 * margin, self.height + 2 * margin)


def key(seed: int, *salts: int) -> int:
    """A 32-bit key from a seed and any number of salts (splitmix64 over each)."""
    state = 0
    for part in (seed, *salts):
        state = (state + (part & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state >> 32


def _mix(h: U32) -> U32:
    """A 32-bit finaliser (the constants are the published low-bias pair), in place."""
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def hashed(ix: NDArray[np.int64], iy: NDArray[np.int64], salt: int) -> U32:
    """Hash integer coordinates, broadcast against each other, to uint32."""
    h = _mix(np.asarray(ix).astype(np.uint32) ^ np.uint32(salt))
    return _mix(h + np.asarray(iy).astype(np.uint32) * np.uint32(0x9E3779B1))


def grid_hash(x0: int, y0: int, width: int, height: int, salt: int) -> U32:
    """Hash every integer point of a grid: uint32 ``[height, width]``."""
    return hashed(np.arange(x0, x0 + width)[None, :], np.arange(y0, y0 + height)[:, None], salt)


def unit(h: U32, channel: int = 0) -> F32:
    """Uniform [0, 1) from hashes; channels of one hash are independent."""
    if channel:
        h = _mix(h + np.uint32((channel * 0x9E3779B9) & 0xFFFFFFFF))
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _taps(start: int, length: int, cell: int) -> tuple[int, int, Index, F32]:
    """First lattice node, node count, node index per pixel ``[length]`` and B-spline weights ``[4, length]``."""
    position = np.arange(start, start + length)
    node = position // cell
    t = ((position - node * cell).astype(np.float32) + np.float32(0.5)) / np.float32(cell)
    s = np.float32(1) - t
    sixth = np.float32(1 / 6)
    weights = np.stack([s * s * s, 4 - 6 * t * t + 3 * t * t * t, 4 - 6 * s * s + 3 * s * s * s, t * t * t]) * sixth
    first = int(node[0])
    return first - 1, int(node[-1]) - first + 4, (node - first).astype(np.intp), weights.astype(np.float32)


def value_noise(region: Region, cell: int, salt: int) -> F32:
    """Smooth noise with features of about ``cell`` pixels: cubic B-spline through a hashed lattice."""
    x_first, nx, ix, wx = _taps(region.x0, region.width, cell)
    y_first, ny, iy, wy = _taps(region.y0, region.height, cell)
    nodes = (unit(grid_hash(x_first, y_first, nx, ny, salt)) - np.float32(0.5)) * (np.float32(2) / _BSPLINE_SD)
    rows = nodes[:, ix] * wx[0]
    for k in range(1, 4):
        rows += nodes[:, ix + k] * wx[k]
    out = rows[iy]
    out *= wy[0][:, None]
    for k in range(1, 4):
        part = rows[iy + k]
        part *= wy[k][:, None]
        out += part
    return out


def fbm(region: Region, cell: int, salt: int, octaves: int = 3) -> F32:
    """Fractal sum of value noise: each octave half the size and 0.55 of the height of the one before."""
    total = value_noise(region, cell, salt)
    height, power = 1.0, 1.0
    for octave in range(1, octaves):
        height *= 0.55
        power += height * height
        total += np.float32(height) * value_noise(region, max(2, cell >> octave), key(salt, octave))
    total *= np.float32(power**-0.5)
    return total


def directions(region: Region, cell: int, salt: int, ripple: float = 0.0) -> tuple[F32, F32]:
    """A smooth field of undirected lines as unit vectors (x, y), turning over about ``cell`` pixels.

    Two noises are the cosine and sine of twice the angle, so that a line and its opposite are the same line;
    ``ripple`` adds a finer waviness.
    """
    c, s = value_noise(region, cell, key(salt, 1)), value_noise(region, cell, key(salt, 2))
    if ripple:
        fine = max(8, cell // 4)
        c += np.float32(ripple) * value_noise(region, fine, key(salt, 3))
        s += np.float32(ripple) * value_noise(region, fine, key(salt, 4))
    c /= np.sqrt(c * c + s * s) + np.float32(1e-6)
    c *= np.float32(0.5)
    ux = np.sqrt(np.maximum(np.float32(0.5) + c, 0))
    uy = np.copysign(np.sqrt(np.maximum(np.float32(0.5) - c, 0)), s)
    return ux, uy


def smeared(region: Region, lines: tuple[F32, F32], cell: int, salt: int, *, reach: int, taps: int) -> F32:
    """Noise of ``cell`` pixels averaged along a line field over ``reach`` pixels each way: fibres."""
    pad = reach + 1
    source = value_noise(region.grow(pad), cell, salt)
    flat, stride = source.ravel(), source.shape[1]
    rows, columns = np.arange(region.height) + pad, np.arange(region.width) + pad
    here: Index = rows[:, None] * stride + columns[None, :]
    ux, uy = lines
    total = flat[here]
    for i in range(1, taps + 1):
        distance = np.float32(reach * i / taps)
        step = np.rint(uy * distance)
        step *= np.float32(stride)
        step += np.rint(ux * distance)
        jump = step.astype(np.intp)
        total += flat[here + jump]
        total += flat[here - jump]
    total *= np.float32((2 * taps + 1) ** -0.5)
    return total


@dataclass(frozen=True)
class Lattice:
    """A jittered lattice of objects, one to a cell.

    ``ix, iy`` int64 ``[rows, cols]`` cell numbers, ``h`` their hash, ``jx, jy`` float32 offsets of an object from
    the middle of its cell in pixels.
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
        """All cells whose objects may reach ``region`` (an object reaches one cell from its cell's middle)."""
        fx, fy = region.x0 // cell - 1, region.y0 // cell - 1
        nx = (region.x0 + region.width - 1) // cell + 2 - fx
        ny = (region.y0 + region.height - 1) // cell + 2 - fy
        ix, iy = np.meshgrid(np.arange(fx, fx + nx), np.arange(fy, fy + ny))
        h = hashed(ix, iy, salt)
        spread = np.float32(2 * jitter * cell)
        half = np.float32(0.5)
        return cls(region, cell, ix, iy, h, (unit(h, 1) - half) * spread, (unit(h, 2) - half) * spread)

    def u(self, channel: int) -> F32:
        """Uniform [0, 1) for every object; channels from 3 on are free."""
        return unit(self.h, channel)

    def bell(self, channel: int) -> F32:
        """Roughly normal, sd 1, bounded at 2.4, for every object (uses two channels)."""
        return (self.u(channel) + self.u(channel + 1) - np.float32(1)) * np.float32(2.45)

    def sample(self, field: F32, grown: Region, dx: int = 0, dy: int = 0) -> F32:
        """Values of a raster (over ``grown``) at the objects' middles plus (dx, dy), its edge if those lie outside."""
        x = np.rint(self.jx).astype(np.intp) + self.ix * self.cell + (self.cell // 2 + dx - grown.x0)
        y = np.rint(self.jy).astype(np.intp) + self.iy * self.cell + (self.cell // 2 + dy - grown.y0)
        return field[np.clip(y, 0, grown.height - 1), np.clip(x, 0, grown.width - 1)]

    def _crop(self, blocks: NDArray, shift: int) -> NDArray:
        """Blocks ``[rows, cell, cols, cell]`` beginning at cell 0 plus ``shift`` pixels, cut to the region."""
        flat = blocks.reshape(blocks.shape[0] * self.cell, blocks.shape[2] * self.cell)
        oy = self.region.y0 - (int(self.iy[0, 0]) * self.cell + shift)
        ox = self.region.x0 - (int(self.ix[0, 0]) * self.cell + shift)
        return flat[oy : oy + self.region.height, ox : ox + self.region.width]

    def ellipses(self, a: F32, b: F32, ux: F32, uy: F32, present: NDArray[np.bool_]) -> tuple[F32, Index]:
        """Squared elliptic distance (1 on the outline) to the nearest object and that object's flat number.

        ``a, b`` half axes in pixels, ``a`` along the unit vector ``(ux, uy)``, all ``[rows, cols]``. The jitter plus
        the half axis must stay below the cell size: a pixel looks at the four objects around it.
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
    """A warped Voronoi tessellation: distances to the two nearest middles, offset from and hash of the nearest."""

    f1: F32
    f2: F32
    dx: F32
    dy: F32
    h: U32


def warped_cells(region: Region, warp: tuple[F32, F32], cell: int, salt: int, jitter: float = 0.35) -> Cells:
    """Voronoi cells of about ``cell`` pixels seen through a displacement field (pixels, below one cell)."""
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


def turns(dx: F32, dy: F32) -> F32:
    """Angle of a vector in turns [0, 1): a polynomial arctangent, good to 1e-3, made of exact operations only."""
    ax, ay = np.abs(dx), np.abs(dy)
    z = np.minimum(ax, ay) / (np.maximum(ax, ay) + np.float32(1e-12))
    z2 = z * z
    angle = z * (np.float32(0.1591) + z2 * (np.float32(-0.0502) + z2 * np.float32(0.0161)))
    angle = np.where(ay > ax, np.float32(0.25) - angle, angle)
    angle = np.where(dx < 0, np.float32(0.5) - angle, angle)
    return np.where(dy < 0, np.float32(1) - angle, angle)


def step(value: F32, edge: float | F32, width: float) -> F32:
    """A smooth step from 0 to 1 as ``value`` rises through ``edge``, over ``width``."""
    t = np.clip((value - edge) * np.float32(1 / width) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)
