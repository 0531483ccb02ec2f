"""Where the tissue of a haematoxylin and eosin (H&E) slide lies, told from a thumbnail.

Light that reaches the camera through glass of colour I0 as I has the optical density (OD) log10(I0 / I). Both stains
absorb green most: of all tissue seen here OD_blue / OD_green lies between 0.5 and 0.75 and OD_red / OD_green below
0.9. What absorbs otherwise is not H&E tissue: red and black ink (blue as much as green), green and blue ink (red more
than green), dust and shadows (all alike). Thresholds are in OD, so that a dim lamp changes nothing.

Source of the stain model: Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23, 2001.
This module runs in the reader's child process: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold, threshold_otsu
from skimage.measure import label

TISSUE_VERSION = 1  # raise it when masks change: outputs made with another one are not taken as done
MASK_UM = 8.0  # microns a pixel the thresholds are meant for

_OD_FAINT = 0.04  # OD_green: tissue if it touches something of at least ...
_OD_SURE = (0.06, 0.15)  # ... Otsu's threshold, held in this range: on blank glass Otsu would split noise
_RED_RATIO = 1.05  # OD_red / OD_green above: green or blue ink
_BLUE_RATIO = 0.8  # OD_blue / OD_green above: red or black ink, dust, shadow
_BLUE_RATIO_RIM = 0.73  # the same for pixels that touch ink for sure
_INK_OD = 0.3  # ink is strong; pale pixels of odd colour are dust
_INK_UM = 40.0  # ink strokes are wider than vessels full of blood
_INK_AREA_MM2 = 0.015
_INK_MARGIN_UM = 32.0  # around ink: its blurred border looks like stain
_CLOSE_UM = 24.0  # bridges the thin walls of fat cells
_SPARSE_UM = 32.0  # sigma of the mean of what is sparse
_SPARSE_FLOOR, _SPARSE_TOP = 0.025, 0.06  # OD_green: less is uneven glass, more counts no more than this
_SPARSE_MEAN = 0.14 * _SPARSE_TOP  # fat has 0.17 and more, glass with its dust below 0.08
_HOLE_MM2 = 0.02
_SPECK_MM2 = 0.01  # less than a patch of 256 pixels at 0.5 microns a pixel covers
_DEFAULT_GLASS = (245, 245, 245)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tissue:
    """mask: bool [h, w], True on tissue. reason: why there is none, else None. glass: colour of empty glass (RGB)."""

    mask: Mask
    reason: str | None
    glass: tuple[int, int, int]
    warnings: tuple[str, ...] = ()

    @property
    def fraction(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.mask.mean()) if self.mask.size else 0.0


def tissue_mask(thumbnail: NDArray[np.uint8], mpp: float) -> Tissue:
    """Tissue of a thumbnail uint8 [h, w, 3] (RGB) of `mpp` microns a pixel, best about 8.

    A slide without any is a result, not an error: the mask is empty and `reason` says what was seen instead.
    """
    nothing = np.zeros(thumbnail.shape[:2], np.bool_)
    if _is_dark(thumbnail):
        return Tissue(nothing, "dark background: looks like fluorescence, no H&E tissue", (0, 0, 0))
    glass, warnings = _glass_colour(thumbnail)
    red, green, blue = _optical_density(thumbnail, glass)
    if warnings:  # with wrong colours, hues say nothing: whatever is darker than glass is taken
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
    """Black for the most part and lit glass nowhere. (H&E slides padded with black have glass.)"""
    lowest, highest = thumbnail.min(axis=2), thumbnail.max(axis=2)
    dark = (highest < 60) | (lowest < 20)  # black, or one dye shining on black
    return float(dark.mean()) > 0.5 and float((lowest > 180).mean()) < 0.01


def _glass_colour(thumbnail: NDArray[np.uint8]) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Colour of empty glass, and a warning where it is not near white.

    Glass is bright and flat. A slide filled with tissue shows none: then a usual white is taken.
    """
    channels = thumbnail.transpose(2, 0, 1)
    spread = [ndimage.maximum_filter(c, 3).astype(np.int16) - ndimage.minimum_filter(c, 3) for c in channels]
    flat = np.maximum.reduce(spread) <= 8
    brightness = thumbnail.mean(axis=2)
    colours = thumbnail[flat & (brightness >= 0.92 * np.percentile(brightness, 99))]
    enough = 0.005 * brightness.size
    if len(colours) < enough:
        return _DEFAULT_GLASS, ()
    scanned = colours[colours.min(axis=1) < 254]  # pure white is often what a scanner left out
    if len(scanned) >= enough:
        colours = scanned
    middle = np.median(colours, axis=0)
    glass = (round(float(middle[0])), round(float(middle[1])), round(float(middle[2])))
    if min(glass) >= 180 and max(glass) - min(glass) <= 30:
        return glass, ()
    # Coloured "glass" may be an evenly stained tissue; only a large area of exactly one colour is taken for glass.
    same = float((np.abs(thumbnail.astype(np.int16) - np.array(glass)) <= 4).all(axis=2).mean())
    if same < 0.15 or min(glass) < 60:
        return _DEFAULT_GLASS, ()
    read = ",".join(map(str, glass))
    return glass, (f"background reads {read}: colours look wrong in the file",)


def _optical_density(thumbnail: NDArray[np.uint8], glass: tuple[int, int, int]) -> list[NDArray[np.float32]]:
    """OD of the three channels against the glass, each float32 [h, w], at least 0."""
    levels = np.arange(256, dtype=np.float32) + 1
    tables = [np.maximum(np.log10((white + 1) / levels), 0).astype(np.float32) for white in glass]
    return [table[thumbnail[..., channel]] for channel, table in enumerate(tables)]


def _ink(red: NDArray[np.float32], green: NDArray[np.float32], blue: NDArray[np.float32], mpp: float) -> Mask:
    """Marker strokes of any colour, with a margin. Small spots of the same colours (blood, pigment) are left alone."""
    strong = np.maximum(np.maximum(red, green), blue) > _INK_OD
    off = strong & ((red > _RED_RATIO * green) | (blue > _BLUE_RATIO * green))
    core = _open(off, _INK_UM / 2 / mpp)
    core = _without_small(core, _INK_AREA_MM2, mpp)
    if not core.any():
        return core
    rim = (red > _RED_RATIO * green) | (blue > _BLUE_RATIO_RIM * green)
    rim &= np.maximum(np.maximum(red, green), blue) > _OD_FAINT
    grown: Mask = ndimage.binary_propagation(core, mask=rim | core)
    # Rims may run on along thin threads through tissue; only what lies near is taken.
    near = ndimage.distance_transform_edt(~core) <= 4 * _INK_MARGIN_UM / mpp
    reach = ndimage.distance_transform_edt(~(grown & near)) <= _INK_MARGIN_UM / mpp
    return np.asarray(reach, np.bool_)


def _sparse(density: NDArray[np.float32], mpp: float) -> Mask:
    """Where a little stain is spread evenly: fat, whose walls are thinner than a pixel and part into specks."""
    stain = np.where(density > _SPARSE_FLOOR, np.minimum(density, _SPARSE_TOP), np.float32(0))
    mean = ndimage.gaussian_filter(stain, _SPARSE_UM / mpp, mode="nearest")
    mask = ~_without_small(~(mean > _SPARSE_MEAN), _HOLE_MM2, mpp)
    # Beside a straight border of dense tissue the mean falls below the limit 1.08 sigma out: take that back.
    return _erode(mask, 1.08 * _SPARSE_UM / mpp)


def _erode(mask: Mask, radius: float) -> Mask:
    """Erosion with a disk; the outside of the slide counts as unknown, not as glass."""
    return np.asarray(ndimage.distance_transform_edt(mask) > radius, np.bool_) if not mask.all() else mask


def _close(mask: Mask, radius: float) -> Mask:
    """Closing with a disk; the outside of the slide counts as unknown, not as glass."""
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
    """The mask without connected areas below `area_mm2` (8-neighbourhood)."""
    labels = label(mask, connectivity=2)
    pixels = np.bincount(labels.ravel())
    keep = pixels * (mpp / 1000) ** 2 >= area_mm2
    keep[0] = False  # the background
    kept: Mask = keep[labels]
    return kept
