"""The features of `texture` about objects: nuclei, their layout, and open space."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.filters import threshold_otsu

from abbe.slides.patch_encoders.texture_base import STAINS, Array, Mask, Row, Values, halve

_QUANTILES = ("p10", "p50", "p90")
_WHITE_DENSITY = 0.10  # mean optical density below this is glass, lumen or fat
_BINS = 64  # of the histogram behind Otsu's threshold
_MIN_NUCLEUS = 16  # pixels
_MIN_LUMEN = 16  # pixels of the half-size image


class _Objects:
    """Moments of the connected regions of a mask [h, w] that have at least `smallest` pixels; arrays are [n]."""

    def __init__(self, mask: Mask, smallest: int) -> None:
        labels, count = ndimage.label(mask)
        where = np.flatnonzero(labels)
        label = labels.ravel()[where] - 1
        area = np.bincount(label, minlength=count)
        big = area >= smallest
        renumber = np.cumsum(big) - 1
        kept = big[label]
        self.where = where[kept]  # flat index of each pixel of a kept region
        self.label = renumber[label[kept]]  # the region of each of these pixels
        self.n = int(big.sum())
        self.area = area[big].astype(np.float64)
        y, x = np.divmod(self.where, mask.shape[1])
        self.y, self.x = self.mean(y), self.mean(x)
        dy, dx = y - self.y[self.label], x - self.x[self.label]
        vy, vx, vxy = self.mean(dy * dy) + 1 / 12, self.mean(dx * dx) + 1 / 12, self.mean(dx * dy)
        self.cos, self.sin = vx - vy, 2 * vxy
        root = np.hypot(self.cos, self.sin)
        self.eccentricity = np.sqrt(np.maximum(2 * root / (vx + vy + root + 1e-9), 0))
        # 1 for an ellipse, less for a ragged or bent region.
        self.fullness = self.area / (4 * np.pi * np.sqrt(np.maximum(vx * vy - vxy * vxy, 1e-9)))

    def mean(self, values: Values) -> Values:
        """Mean over each region of one value per kept pixel."""
        means: Values = np.bincount(self.label, values, self.n) / np.maximum(self.area, 1)
        return means


def _otsu(values: Values) -> float:
    """Otsu's threshold of values between 0 and 1, from a histogram of 64 bins."""
    counts = np.bincount(np.clip(values * _BINS, 0, _BINS - 1).astype(np.intp), minlength=_BINS)
    if np.count_nonzero(counts) < 2:  # nothing to separate
        return 0.0
    return (float(threshold_otsu(hist=(counts, np.arange(_BINS)))) + 1) / _BINS


def _quantiles(values: Values, default: float) -> Values:
    """Quantiles 0.1, 0.5 and 0.9 of the values [n]; the default if there are none."""
    if not len(values):
        return np.full(3, default)
    ordered: Values = np.sort(values)
    return ordered[[round(q * (len(values) - 1)) for q in (0.1, 0.5, 0.9)]]


def _median(values: Values) -> float:
    return float(np.median(values)) if len(values) else 0.0


def nuclei_features(row: Row, stains: Array, smooth: Array, background: Array) -> None:
    """Nuclei: regions where smoothed haematoxylin [h, w] exceeds Otsu's threshold and its background [h, w]."""
    h, w = smooth.shape
    tissue = smooth[smooth > 0.05]
    threshold = min(max(_otsu(tissue), 0.12), 0.6) if tissue.size else 0.6
    dense = smooth > threshold
    objects = _Objects(dense & (smooth > background), _MIN_NUCLEUS)
    n, area = objects.n, objects.area
    inside = stains[0].ravel()[objects.where]
    chroma = objects.mean(inside)
    grain = np.sqrt(np.maximum(objects.mean((inside - chroma[objects.label]) ** 2), 0))
    eosin = objects.mean(stains[1].ravel()[objects.where])
    log_area = np.log(np.maximum(area, 1))
    # Around nuclei is mostly cytoplasm, far from them mostly stroma.
    reach = ndimage.uniform_filter(dense.astype(np.float32), 9, mode="nearest") > 0.01
    zones = (dense, reach & ~dense, ~reach)
    levels = [[float(stain[zone].mean()) if zone.any() else 0.0 for stain in stains] for zone in zones]
    contrast = _median(chroma) - levels[2][0]

    row.add("count", "nuclei", ("density",), [np.log1p(n * 1e4 / (h * w))])
    shares = [area.sum() / (h * w), dense.mean(), (smooth > threshold + 0.1).mean()]
    row.add("fraction", "nuclei", ("area_fraction", "dense_fraction", "dark_fraction"), shares)
    for zone, level in zip(("nuclear", "near", "far"), levels, strict=True):
        row.add("density", f"nuclei/{zone}", STAINS, level)
    row.add("size", "nuclei/log_area", _QUANTILES, _quantiles(log_area, 0.0))
    row.add("outline", "nuclei/eccentricity", _QUANTILES, _quantiles(objects.eccentricity, 0.0))
    row.add("outline", "nuclei/fullness", _QUANTILES, _quantiles(objects.fullness, 0.0))
    row.add("density", "nuclei/chromatin", _QUANTILES, _quantiles(chroma, 0.0))
    row.add("variety", "nuclei/grain", _QUANTILES, np.log(_quantiles(grain, 0.0) + 0.01))
    row.add("density", "nuclei", ("threshold", "contrast", "eosin"), [threshold, contrast, _median(eosin)])
    spread = [np.log(log_area.std() + 0.05) if n > 1 else -3, np.log(chroma.std() + 0.01) if n > 1 else -4.6]
    row.add("variety", "nuclei", ("area_spread", "chromatin_spread"), spread)

    _layout_features(row, objects, h, w)


def _layout_features(row: Row, objects: _Objects, h: int, w: int) -> None:
    """Distances, regularity and alignment of the nuclei in a patch of h x w pixels."""
    n = objects.n
    long = np.hypot(objects.cos, objects.sin)  # deviation from a circle, in square pixels
    near, cluster, parallel, crowded, gap_spread = np.zeros(0), 0.0, 0.0, 0.0, -3.0
    if n > 2:
        points = np.stack([objects.y, objects.x], axis=1)
        distance, nearest = cKDTree(points).query(points, k=2)  # the nearest is the point itself
        near, other = np.asarray(distance)[:, 1], np.asarray(nearest)[:, 1]
        gap_spread = np.log(np.log(near + 1).std() + 0.05)
        crowded = float((near < 1.5 * np.sqrt(objects.area * 4 / np.pi)).mean())
        dot = objects.cos * objects.cos[other] + objects.sin * objects.sin[other]
        parallel = float(dot.sum() / ((long * long[other]).sum() + 1e-6))
        cluster = float(np.tanh(near.mean() * 2 * np.sqrt(n / (h * w)) - 1))  # Clark-Evans: 0 at random
    row.add("size", "nuclei/log_gap", _QUANTILES, np.log(_quantiles(near, 1.0) + 1))
    row.add("signed", "nuclei", ("regularity", "parallel"), [cluster, parallel])
    row.add("fraction", "nuclei", ("crowded",), [crowded])
    row.add("variety", "nuclei", ("gap_spread",), [gap_spread])
    row.add(
        "directed", "nuclei", ("alignment",), [np.hypot(objects.cos.sum(), objects.sin.sum()) / (long.sum() + 1e-6)]
    )
    # Variance over mean of the counts on a 4 x 4 grid: 1 for points at random.
    cell = ((objects.y + 0.5) * 4 / h).astype(np.intp) * 4 + ((objects.x + 0.5) * 4 / w).astype(np.intp)
    counts = np.bincount(cell, minlength=16)
    row.add("signed", "nuclei", ("unevenness",), [np.tanh(np.log((counts.var() + 0.5) / (counts.mean() + 0.5)) / 2)])


def lumen_features(row: Row, density: Array, stains: Array) -> None:
    """Open space: bright regions of the mean optical density [h, w]; all of the half-size patch."""
    h, w = density.shape
    white = density < _WHITE_DENSITY
    objects = _Objects(white, _MIN_LUMEN)
    rim = float((white[1:] != white[:-1]).sum() + (white[:, 1:] != white[:, :-1]).sum())
    fraction = float(white.mean())
    largest = float(objects.area.max()) / (h * w) if objects.n else 0.0
    pale = float((density < 2 * _WHITE_DENSITY).mean())
    coarse = halve(halve(halve(white.astype(np.float32))))  # blocks of 16 pixels of the patch
    values = [np.sqrt(fraction), np.sqrt(pale), np.sqrt(largest), 2 * rim / (h * w), 2 * float(coarse.std())]
    row.add("fraction", "lumen", ("fraction", "pale", "largest", "rim", "unevenness"), values)
    # The lining: pixels within two of the open space; epithelium if the space is a lumen.
    lining = (ndimage.uniform_filter(white.astype(np.float32), 5, mode="nearest") > 0.01) & ~white
    level = [float(stain[lining].mean()) if lining.any() else 0.0 for stain in stains[:2]]
    row.add("density", "lumen/lining", STAINS[:2], level)
    row.add("count", "lumen", ("density",), [np.log1p(objects.n * 1e4 / (4 * h * w))])
    row.add("size", "lumen", ("log_area",), [np.log(_median(objects.area) * 4 + 1)])
    outline = [_median(objects.eccentricity), _median(objects.fullness)]
    row.add("outline", "lumen", ("eccentricity", "fullness"), outline)
