"""Noise for procedural tissue: hashes, value noise, fields of directions, smeared noise.

Everything here is a pure function of *world* pixel coordinates and a key, so a region and its tiles agree bit for bit.
Two rules keep that true: nodes are hashed, never drawn from a generator; and on pixels only operations that IEEE 754
rounds exactly are used (add, multiply, divide, square root), no vectorised sine or exponential, whose last bit may
depend on a pixel's position in its array.

Arrays are float32 ``[height, width]`` unless said otherwise. Noise has mean 0 and a standard deviation of about 1.
"""

from __future__ import annotations

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
        """The rectangle, larger by ``margin`` pixels on every side."""
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
    """A 32-bit finaliser, in place; the constants are the published low-bias pair."""
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def hashed(ix: NDArray[np.int64], iy: NDArray[np.int64], salt: int) -> U32:
    """Hash integer coordinates, which are broadcast, to uint32."""
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
    t = ((position - node * cell).astype(np.float32) + 0.5) / np.float32(cell)
    s = 1 - t
    sixth = np.float32(1 / 6)
    weights = np.stack([s * s * s, 4 - 6 * t * t + 3 * t * t * t, 4 - 6 * s * s + 3 * s * s * s, t * t * t]) * sixth
    first = int(node[0])
    return first - 1, int(node[-1]) - first + 4, (node - first).astype(np.intp), weights.astype(np.float32)


def value_noise(region: Region, cell: int, salt: int) -> F32:
    """Smooth noise with features of about ``cell`` pixels: cubic B-spline through a hashed lattice."""
    x_first, nx, ix, wx = _taps(region.x0, region.width, cell)
    y_first, ny, iy, wy = _taps(region.y0, region.height, cell)
    nodes = (unit(grid_hash(x_first, y_first, nx, ny, salt)) - 0.5) * (2 / _BSPLINE_SD)
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
    """Fractal sum of value noise: each octave has half the cell size and 0.55 times the height of the previous one."""
    total = value_noise(region, cell, salt)
    height, power = 1.0, 1.0
    for octave in range(1, octaves):
        height *= 0.55
        power += height * height
        total += np.float32(height) * value_noise(region, max(2, cell >> octave), key(salt, octave))
    total *= np.float32(power**-0.5)
    return total


def directions(region: Region, cell: int, salt: int, ripple: float = 0.0) -> tuple[F32, F32]:
    """A smooth field of undirected lines as unit vectors (x, y) that turn over about ``cell`` pixels.

    Two noises are the cosine and sine of twice the angle, so that opposite directions are one line. ``ripple``: amount
    of finer waves.
    """
    c, s = value_noise(region, cell, key(salt, 1)), value_noise(region, cell, key(salt, 2))
    if ripple:
        fine = max(8, cell // 4)
        c += np.float32(ripple) * value_noise(region, fine, key(salt, 3))
        s += np.float32(ripple) * value_noise(region, fine, key(salt, 4))
    c /= np.sqrt(c * c + s * s) + np.float32(1e-6)
    c *= 0.5
    ux = np.sqrt(np.maximum(0.5 + c, 0))
    uy = np.copysign(np.sqrt(np.maximum(0.5 - c, 0)), s)
    return ux, uy


def smeared(region: Region, lines: tuple[F32, F32], cell: int, salt: int, *, reach: int, taps: int) -> F32:
    """Fibres: noise of ``cell`` pixels averaged along a field of lines, ``reach`` pixels each way."""
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


def turns(dx: F32, dy: F32) -> F32:
    """Angle of a vector in turns [0, 1): a polynomial arctangent of exactly rounded operations; error up to 1e-3."""
    ax, ay = np.abs(dx), np.abs(dy)
    z = np.minimum(ax, ay) / (np.maximum(ax, ay) + np.float32(1e-12))
    z2 = z * z
    angle = z * (0.1591 + z2 * (-0.0502 + z2 * 0.0161))
    angle = np.where(ay > ax, 0.25 - angle, angle)
    angle = np.where(dx < 0, 0.5 - angle, angle)
    return np.where(dy < 0, 1 - angle, angle)


def step(value: F32, edge: float | F32, width: float) -> F32:
    """A smooth step from 0 to 1 as ``value`` rises through ``edge``, over ``width``."""
    t = np.clip((value - edge) * np.float32(1 / width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)
