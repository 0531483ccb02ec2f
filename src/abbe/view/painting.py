"""Patches painted on a slide's thumbnail as their true rectangles."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np

_HUES = 10  # hues that the eye distinguishes at one lightness
_SCALE_BAR_SHARE = 0.2  # of the picture's width, at most


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """pixels: uint8 [h, w, 3].   downsample: level-0 pixels per thumbnail pixel.   mpp: at level 0, if known."""

    pixels: np.ndarray
    downsample: float
    mpp: float | None


def token_colours(k: int) -> np.ndarray:
    """k colours, float [k, 3]: even hues, in three lightnesses beyond ten colours; consecutive ones differ in hue."""
    hues = max(1, k if k <= _HUES else -(-k // 3))
    golden = (math.sqrt(5) - 1) / 2
    order = np.argsort((np.arange(hues) * golden) % 1)
    rows = [colorsys.hls_to_rgb(order[i % hues] / hues, (0.45, 0.68, 0.28)[i // hues], 0.9) for i in range(k)]
    return np.array(rows).reshape(k, 3)


def paint(thumbnail: Thumbnail, coords_px0: np.ndarray, size_px0: float, colours: np.ndarray) -> np.ndarray:
    """Rectangles over the thumbnail, uint8 [h, w, 3].

    coords_px0: [N, 2] top-left corners; size_px0: side; both level-0 pixels.   colours: [N, 4] RGBA in 0..1.
    """
    out = thumbnail.pixels.astype(np.float32)
    height, width = out.shape[:2]
    left_top = np.floor(coords_px0 / thumbnail.downsample).astype(int)
    # Ends are rounded from the exact end, not from the rounded start, so that neighbours leave no gaps.
    right_bottom = np.floor((coords_px0 + size_px0) / thumbnail.downsample).astype(int)
    right_bottom = np.maximum(right_bottom, left_top + 1)
    for (x0, y0), (x1, y1), (r, g, b, a) in zip(left_top, right_bottom, colours, strict=True):
        if x0 >= width or y0 >= height or a == 0:
            continue
        area = out[y0 : min(y1, height), x0 : min(x1, width)]
        area *= 1 - a
        area += np.array([r, g, b], np.float32) * 255 * a
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def scale_bar_um(width_um: float) -> float:
    """A round length in microns, 1, 2 or 5 × 10^n, of at most a fifth of the picture's width."""
    room = width_um * _SCALE_BAR_SHARE
    power = 10 ** math.floor(math.log10(room))
    return max(step * power for step in (1, 2, 5) if step * power <= room)
