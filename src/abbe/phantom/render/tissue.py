"""Procedural H&E: a tissue class, a place and a seed give pixels at 0.5 microns per pixel.

Each class is a layer of two densities, haematoxylin and eosin (:mod:`abbe.phantom.render.normal`,
:mod:`abbe.phantom.render.carcinoma`). Pixels follow from the Beer-Lambert law:
``RGB = background * 10 ** -(H * vector_H + E * vector_E)``. Layers are functions of world coordinates, so tiles meet
without a seam, bit for bit. In a map of several classes each pixel shows the layer of its own class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from abbe.errors import InputError
from abbe.phantom.render.carcinoma import CARCINOMAS, carcinoma
from abbe.phantom.render.layers import Layer, View
from abbe.phantom.render.noise import F32, Region, grid_hash, key
from abbe.phantom.render.normal import NORMAL
from abbe.phantom.render.stain import Stain, site_stain

__all__ = ["GLASS", "MPP", "TISSUE_CLASSES", "Stain", "render", "site_stain"]

_LAYERS: dict[str, Callable[[View], Layer]] = {
    **NORMAL,
    **{name: partial(carcinoma, spec=spec) for name, spec in CARCINOMAS.items()},
}
TISSUE_CLASSES = tuple(_LAYERS)
"""stroma, muscle, fat, gland, lymphocytes, necrosis; tumour_a1 to tumour_a3, tumour_b1 to tumour_b3"""
GLASS = 255
"""value in class maps where there is no tissue"""
MPP = 0.5

_BLUR = 2  # reach of the optical blur in pixels
_MARGIN = 24  # pixels; nuclei whose centres lie this far outside a region may still show in it
_LEVELS = 4096  # steps of the optical density table over [0, _OD_MAX]
_OD_MAX = 3.0


def _blurred(field: F32, sigma: float) -> F32:
    """Gaussian of five taps, valid part only: the field loses ``_BLUR`` pixels on every side."""
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in (0, 1, 2)]
    total = taps[0] + 2 * (taps[1] + taps[2])
    w0, w1, w2 = (np.float32(tap / total) for tap in taps)
    rows = w0 * field[2:-2] + w1 * (field[1:-3] + field[3:-1]) + w2 * (field[:-4] + field[4:])
    return w0 * rows[:, 2:-2] + w1 * (rows[:, 1:-3] + rows[:, 3:-1]) + w2 * (rows[:, :-4] + rows[:, 4:])


def _layer(region: Region, number: int, stain: Stain, seed: int) -> Layer:
    view = View(region.grow(_BLUR), region.grow(_BLUR + _MARGIN), key(seed, number + 1), stain)
    h, e = _LAYERS[TISSUE_CLASSES[number]](view)
    return _blurred(h, stain.blur), _blurred(e, stain.blur)


def _to_pixels(h: F32, e: F32, region: Region, stain: Stain, seed: int) -> NDArray[np.uint8]:
    """Densities to pixels by a table of 10 ** -OD, with the sensor's noise: uint8 ``[height, width, 3]``."""
    table = np.power(10.0, -np.linspace(0, _OD_MAX, _LEVELS)).astype(np.float32)
    bits = grid_hash(region.x0, region.y0, region.width, region.height, key(seed, 0)).view(np.uint8)
    sensor = bits.reshape(region.height, region.width, 4)
    pixels = np.empty((region.height, region.width, 3), np.uint8)
    to_level = (_LEVELS - 1) / _OD_MAX
    for channel in range(3):
        density = h * np.float32(stain.haematoxylin[channel] * stain.strengths[0] * to_level)
        density += e * np.float32(stain.eosin[channel] * stain.strengths[1] * to_level)
        np.clip(density, 0, _LEVELS - 1, out=density)
        value = table[density.astype(np.intp)]
        value *= np.float32(stain.background[channel])
        # The sd of a uniform byte is 73.9.
        value += (sensor[:, :, channel] - np.float32(127.5)) * np.float32(stain.noise / 73.9) + 0.5
        pixels[:, :, channel] = np.clip(value, 0, 255)
    return pixels


def render(
    x0: int, y0: int, width: int, height: int, classes: int | NDArray[np.uint8], *, stain: Stain, seed: int
) -> NDArray[np.uint8]:
    """Pixels of a rectangle of the world, uint8 ``[height, width, 3]``.

    classes: one class number for the whole rectangle, or a uint8 map ``[height, width]`` with ``GLASS`` where there is
    no tissue. Raises InputError for an empty rectangle, a map of another shape or an unknown class.
    """
    if width < 1 or height < 1:
        raise InputError(f"render: width and height must be at least 1, got {width} x {height}")
    chosen = np.asarray(classes)
    if chosen.ndim and chosen.shape != (height, width):
        raise InputError(f"render: classes must have shape ({height}, {width}), got {chosen.shape}")
    present = np.unique(chosen).tolist()
    unknown = [value for value in present if value != GLASS and not 0 <= value < len(TISSUE_CLASSES)]
    if unknown:
        raise InputError(f"render: classes must be below {len(TISSUE_CLASSES)} or {GLASS} (glass), got {unknown[0]}")
    region = Region(int(x0), int(y0), int(width), int(height))
    h = np.zeros((height, width), np.float32)
    e = np.zeros((height, width), np.float32)
    for number in present:
        if number == GLASS:
            continue
        if chosen.ndim == 0:
            h, e = _layer(region, number, stain, seed)
            break
        mask = chosen == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left = int(rows[0]), int(columns[0])
        bottom, right = int(rows[-1]) + 1, int(columns[-1]) + 1
        box = np.s_[top:bottom, left:right]
        part = Region(region.x0 + left, region.y0 + top, right - left, bottom - top)
        layer_h, layer_e = _layer(part, number, stain, seed)
        np.copyto(h[box], layer_h, where=mask[box])
        np.copyto(e[box], layer_e, where=mask[box])
    return _to_pixels(h, e, region, stain, seed)
