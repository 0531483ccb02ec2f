"""What a patch has been through when it is read from a slide: optics, sensor, and JPEG.

Blur and noise are functions of the place in the world, so that tiles meet without a seam: they are painted by
:func:`abbe.phantom.render.tissue.render`. Here is the JPEG that follows, with its options for the writer of slides, and
single patches that have been through the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from abbe.phantom.render.tissue import Stain, render

MCU = 16
"""pixels; the largest unit that JPEG compresses on its own, with chroma of half the width and height"""
_FACTORS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}

Pixels = NDArray[np.uint8]


def tiff_jpeg(stain: Stain) -> dict[str, Any]:
    """The JPEG of a stain as arguments of ``tifffile.TiffWriter.write``."""
    return {
        "compression": "jpeg",
        "compressionargs": {"level": stain.quality},
        "subsampling": _FACTORS[stain.subsampling],
    }


def through_jpeg(pixels: Pixels, stain: Stain) -> Pixels:
    """Pixels, uint8 ``[height, width, 3]``, after the JPEG of a stain whose grid starts at the first pixel."""
    encoded = imagecodecs.jpeg8_encode(
        pixels,
        level=stain.quality,
        colorspace="rgb",
        outcolorspace="ycbcr",
        subsampling=_FACTORS[stain.subsampling],
    )
    decoded: Pixels = imagecodecs.jpeg8_decode(encoded)
    return decoded


def captured(
    x0: int,
    y0: int,
    side: int,
    classes: int | Callable[[int, int, int, int], Pixels],
    *,
    phase: tuple[int, int],
    stain: Stain,
    seed: int,
) -> Pixels:
    """A patch as it would be read from a slide, uint8 ``[side, side, 3]``.

    classes: one class number, or a function that gives the class map, uint8 ``[height, width]``, of a rectangle (x, y,
    width, height) whose origin is the corner of the patch.
    phase: pixels from the last line of the JPEG grid to the patch, (x, y), 0 to ``MCU`` - 1 each.
    """
    dx, dy = phase
    # Whole units of the grid: half a unit would be filled with what no slide shows.
    width, height = (-(-(offset + side) // MCU) * MCU for offset in phase)
    shown = classes if isinstance(classes, int) else classes(-dx, -dy, width, height)
    whole = render(x0 - dx, y0 - dy, width, height, shown, stain=stain, seed=seed)
    return through_jpeg(whole, stain)[dy : dy + side, dx : dx + side]
