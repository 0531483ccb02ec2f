"""The tissue of a haematoxylin and eosin (H&E) slide, found on a thumbnail.

If glass lets through the intensity I0, a pixel of intensity I has the optical density (OD) log10(I0 / I). Both stains
absorb green most: in tissue OD_blue / OD_green is between 0.5 and 0.75, and OD_red / OD_green below 0.9. Other ratios
are not H&E tissue: red and black ink (blue as high as green), green and blue ink (red higher than green), dust and
shadows (all equal). Thresholds are in OD, so the brightness of the lamp does not matter.

Source of the stain model: Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23, 2001.
This module runs in the reader's child process and must not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold, threshold_otsu
from skimage.measure import label

TISSUE_VERSION = 1  # raise it when masks change: outputs of another version are not taken as done
MASK_UM = 8.0  # microns per pixel that the thresholds are meant for

_OD_FAINT = 0.04  # OD_green above is tissue if connected to a pixel above Otsu's threshold,
_OD_SURE = (0.06, 0.15)  # which is clipped to this range: on blank glass it would split noise
_RED_RATIO = 1.05  # OD_red / OD_green above: green or blue ink
_BLUE_RATIO = 0.8  # OD_blue / OD_green above: red or black ink, dust, shadow
_BLUE_RATIO_RIM = 0.73  # the same, for pixels connected to ink
_INK_OD = 0.3  # ink is dark; pale pixels of these colours are dust
_INK_UM = 40.0  # strokes are at least this wide, unlike vessels filled with blood
_INK_AREA_MM2 = 0.015
_INK_MARGIN_UM = 32.0  # around ink, whose blurred border looks like stain
_CLOSE_UM = 24.0  # bridges the thin walls of fat cells
_SPARSE_UM = 32.0  # sigma of the local mean of sparse stain
_SPARSE_FLOOR, _SPARSE_TOP = 0.025, 0.06  # OD_green: below is uneven glass, above is clipped
_SPARSE_MEAN = 0.14 * _SPARSE_TOP  # fat has at least 0.17, glass with dust less than 0.08
_HOLE_MM2 = 0.02
_SPECK_MM2 = 0.01  # less than the area of a patch of 256 pixels at 0.5 microns per pixel
_DEFAULT_GLASS = (245, 245, 245)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tissue:
    """mask: bool [h, w], True on tissue. reason: why there is no tissue, else None. glass: its colour (RGB)."""

    mask: Mask
    reason: str | None
    glass: tuple[int, int, int]
    warnings: tuple[str, ...] = ()


def tissue_mask(thumbnail: NDArray[np.uint8], mpp: float) -> Tissue:
    """Tissue of a thumbnail uint8 [h, w, 3] (RGB) with `mpp` microns per pixel, best about MASK_UM.

    A slide without tissue is not an error: the mask is empty, and `reason` says what the slide shows.
    """
    nothing = np.zeros(thumbnail.shape[:2], np.bool_)
    if _is_dark(thumbnail):
        return Tissue(nothing, "dark background: looks like fluorescence, no H&E tissue", (0, 0, 0))
    glass, warnings = _glass_colour(thumbnail)
    red, green, blue = _optical_density(thumbnail, glass)
    if warnings:  # colours are wrong and hues useless: everything darker than glass is tissue
        ink, density = nothing, np.maximum(np.maximum(red, green), blue)
    else:
        ink = _ink(red, green, blue, mpp)
        stained = (red < _RED_RATIO * green) & (blue < _BLUE_RATIO * green) & ~ink
        density = np.where(stained, green, np.float32(0))
    if not (density > _OD_SURE[0]).any():
        what = "only marker ink" if ink.any() else "nothing stained on the glass"
        return Tissue(nothing, f"no H&E tissue: {what}", glass, warnings)
    sure = float(np.clip(threshold_otsu(np.minimum(density, 1.0)), *_OD_SURE))
    mask = _close(apply_hysteresis_threshold(density, _OD_FAINT, sure), _CLOSE_UM / mpp) | _sparse(density, mpp)
    mask = _without_small(mask & ~ink, _SPECK_MM2, mpp)
    mask = ~_without_small(~mask, _HOLE_MM2, mpp) & ~ink
    if not mask.any():
        what = "marker ink and specks" if ink.any() else "specks"
        return Tissue(nothing, f"no H&E tissue: only {what} smaller than {_SPECK_MM2:g} mm²", glass, warnings)
    return Tissue(mask, None, glass, warnings)


def _is_dark(thumbnail: NDArray[np.uint8]) -> bool:
    """Mostly black and without bright glass; H&E slides with black padding do have bright glass."""
    lowest, highest = thumbnail.min(axis=2), thumbnail.max(axis=2)
    dark = (highest < 60) | (lowest < 20)  # black, or a fluorescent dye on black
    return float(dark.mean()) > 0.5 and float((lowest > 180).mean()) < 0.01


def _glass_colour(thumbnail: NDArray[np.uint8]) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Colour of empty glass, and a warning if it is not nearly white.

    Glass is bright and flat. If the slide shows none, it is filled with tissue, and a usual white is assumed.
    """
    channels = thumbnail.transpose(2, 0, 1)
    spread = [ndimage.maximum_filter(c, 3).astype(np.int16) - ndimage.minimum_filter(c, 3) for c in channels]
    flat = np.maximum.reduce(spread) <= 8
    brightness = thumbnail.mean(axis=2)
    colours = thumbnail[flat & (brightness >= 0.92 * np.percentile(brightness, 99))]
    enough = 0.005 * brightness.size
    if len(colours) < enough:
        return _DEFAULT_GLASS, ()
    scanned = colours[colours.min(axis=1) < 254]  # pure white is often an area that was not scanned
    if len(scanned) >= enough:
        colours = scanned
    middle = np.median(colours, axis=0)
    glass = (round(float(middle[0])), round(float(middle[1])), round(float(middle[2])))
    if min(glass) >= 180 and max(glass) - min(glass) <= 30:
        return glass, ()
    # Coloured "glass" may be evenly stained tissue: only a large area of one colour counts as glass.
    same = float((np.abs(thumbnail.astype(np.int16) - np.array(glass)) <= 4).all(axis=2).mean())
    if same < 0.15 or min(glass) < 60:
        return _DEFAULT_GLASS, ()
    return glass, (f"background colour is {','.join(map(str, glass))}: the colours in the file look wrong",)


def _optical_density(thumbnail: NDArray[np.uint8], glass: tuple[int, int, int]) -> list[NDArray[np.float32]]:
    """OD of the three channels relative to glass, each float32 [h, w], at least 0."""
    levels = np.arange(256, dtype=np.float32) + 1
    tables = [np.maximum(np.log10((white + 1) / levels), 0).astype(np.float32) for white in glass]
    return [table[thumbnail[..., channel]] for channel, table in enumerate(tables)]


def _ink(red: NDArray[np.float32], green: NDArray[np.float32], blue: NDArray[np.float32], mpp: float) -> Mask:
    """Marker strokes of any colour, with a margin. Small spots of the same colours (blood, pigment) are not ink."""
    strong = np.maximum(np.maximum(red, green), blue) > _INK_OD
    off = strong & ((red > _RED_RATIO * green) | (blue > _BLUE_RATIO * green))
    core = _open(off, _INK_UM / 2 / mpp)
    core = _without_small(core, _INK_AREA_MM2, mpp)
    if not core.any():
        return core
    rim = (red > _RED_RATIO * green) | (blue > _BLUE_RATIO_RIM * green)
    rim &= np.maximum(np.maximum(red, green), blue) > _OD_FAINT
    grown: Mask = ndimage.binary_propagation(core, mask=rim | core)
    # Rims can continue along thin threads through tissue: keep only pixels near the stroke.
    near = ndimage.distance_transform_edt(~core) <= 4 * _INK_MARGIN_UM / mpp
    reach = ndimage.distance_transform_edt(~(grown & near)) <= _INK_MARGIN_UM / mpp
    return np.asarray(reach, np.bool_)


def _sparse(density: NDArray[np.float32], mpp: float) -> Mask:
    """Areas of sparse stain: fat, whose walls are thinner than a pixel and appear as specks."""
    stain = np.where(density > _SPARSE_FLOOR, np.minimum(density, _SPARSE_TOP), np.float32(0))
    mean = ndimage.gaussian_filter(stain, _SPARSE_UM / mpp, mode="nearest")
    mask = ~_without_small(~(mean > _SPARSE_MEAN), _HOLE_MM2, mpp)
    # Beside a straight border of dense tissue the mean exceeds the limit up to 1.08 sigma outside: undo that.
    return _erode(mask, 1.08 * _SPARSE_UM / mpp)


def _erode(mask: Mask, radius: float) -> Mask:
    """Erosion with a disk; outside of the slide is unknown, not glass."""
    return np.asarray(ndimage.distance_transform_edt(mask) > radius, np.bool_) if not mask.all() else mask


def _close(mask: Mask, radius: float) -> Mask:
    """Closing with a disk; outside of the slide is unknown, not glass."""
    near = ndimage.distance_transform_edt(~mask) <= radius if mask.any() else mask
    return _erode(near, radius) | mask


def _open(mask: Mask, radius: float) -> Mask:
    """Opening with a disk."""
    if not mask.any() or mask.all():
        return mask
    core = _erode(mask, radius)
    if not core.any():
        return core
    opened: Mask = ndimage.distance_transform_edt(~core) <= radius
    return opened & mask


def _without_small(mask: Mask, area_mm2: float, mpp: float) -> Mask:
    """The mask without connected areas (8-neighbourhood) smaller than `area_mm2`."""
    labels = label(mask, connectivity=2)
    pixels = np.bincount(labels.ravel())
    keep = pixels * (mpp / 1000) ** 2 >= area_mm2
    keep[0] = False  # the background
    kept: Mask = keep[labels]
    return kept
