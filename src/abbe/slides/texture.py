"""`texture`: the patch encoder that needs no weights.

A patch of haematoxylin and eosin (H&E) tissue becomes WIDTH numbers of stain, texture, nuclei and open space. Nothing
here is learned: every feature is a formula, and the constants that bring features to about zero mean and unit spread
belong to a *kind* of feature (`SCALES`), never to a single one. Features do not follow the orientation of a patch
(tissue has no up), and they are measured in pixels: patches of one run should share one resolution.

Sources
    Stains               Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23, 2001
    Gaussian derivatives Freeman and Adelson, IEEE PAMI 13, 1991 (steerable filters)
    Structure tensor     Bigun and Granlund, ICCV 1987
    Shape index          Koenderink and van Doorn, Image and Vision Computing 10, 1992
    Local binary pattern Ojala, Pietikäinen and Mäenpää, IEEE PAMI 24, 2002 (rotation-invariant uniform)
    Threshold            Otsu, IEEE Transactions on Systems, Man and Cybernetics 9, 1979
    Point clustering     Clark and Evans, Ecology 35, 1954
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from abbe.errors import InputError

WIDTH = 256
LIMIT = 10.0  # scaled features are cut here, which H&E tissue hardly reaches: ink and black folds do
MIN_SIDE = 32  # pixels: four scales then leave a 4 x 4 image at the coarsest

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]

# A feature of one kind is stored as (value - centre) / spread. The constants are round numbers near the mean and the
# standard deviation of that kind over H&E tissue; they are shared by the whole kind.
SCALES: dict[str, tuple[float, float]] = {
    "density": (0.2, 0.15),  # optical densities of a stain
    "spread": (-2.7, 0.5),  # log of a standard deviation of optical density over pixels or blocks
    "signed": (0.1, 0.4),  # correlations, skewness after tanh: within [-1, 1]
    "joint": (0.1, 0.1),  # square roots of shares of the stain histogram (Hellinger)
    "shape": (0.4, 0.07),  # square roots of shares of a shape index histogram
    "pattern": (0.27, 0.1),  # square roots of shares of a local binary pattern histogram
    "energy": (-6.4, 1.0),  # log of a mean squared filter response
    "directed": (0.18, 0.14),  # agreement of directions over the whole patch, 0 to 1
    "local": (0.65, 0.1),  # coherence, evenness and patchiness of edges, 0 to 1
    "outline": (0.8, 0.12),  # eccentricity and fullness of regions, 0 to 1
    "fraction": (0.35, 0.25),  # shares of the patch's area, or their square roots
    "variety": (-1.8, 0.6),  # log of a standard deviation over nuclei or within one
    "size": (3.9, 1.0),  # log of areas (square pixels) and distances (pixels)
    "count": (1.8, 0.7),  # log of one plus a count per 10,000 pixels
}

# Unit optical density of each stain in red, green and blue; the residual is orthogonal to both.
_STAIN = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_STAIN = np.vstack([_STAIN, np.cross(_STAIN[0], _STAIN[1])])
_STAIN /= np.linalg.norm(_STAIN, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAIN).T.astype(np.float32)  # [stain, colour]
_DENSITY = (-np.log10((np.arange(256) + 1.0) / 256.0)).astype(np.float32)  # 0 to 2.4; no infinity at 0

_STAINS = ("hematoxylin", "eosin", "residual")
_TENTHS = ("p10", "p50", "p90")  # what _quantiles gives
_SCALE_COUNT = 4
_SHAPE_BINS = 6
_JOINT = (6, 6)
_WHITE_DENSITY = 0.10  # mean optical density below this is glass, lumen or fat
_MIN_NUCLEUS = 16  # pixels
_MIN_LUMEN = 16  # pixels of the half-size image


def _riu2_table() -> npt.NDArray[np.intp]:
    """Bin of each 8-bit pattern: its count of ones if it has at most two changes round the ring, else 9."""
    codes = np.arange(256)
    bits = (codes[:, None] >> np.arange(8)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9)


_RIU2 = _riu2_table()
# Eight neighbours in ring order, (row, column).
_RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


class _Row:
    """Collects the names, kinds and scaled values of the features of one patch, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.values: list[float] = []

    def add(self, kind: str, prefix: str, names: Iterable[object], values: Sequence[float] | Values) -> None:
        centre, spread = SCALES[kind]
        self.kinds += [kind] * len(values)
        self.names += [f"{prefix}/{name}" for name in names]
        self.values += [(float(value) - centre) / spread for value in values]


def _halve(image: Array) -> Array:
    """Mean of 2 x 2 blocks over the last two axes; an odd last row or column is left out."""
    h, w = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    rows = image[..., 0:h:2, :w] + image[..., 1:h:2, :w]
    quarters: Array = (rows[..., 0::2] + rows[..., 1::2]) * np.float32(0.25)
    return quarters


def _smooth(image: Array) -> Array:
    """Binomial filter 1 4 6 4 1 (a Gaussian of sigma 1 pixel) along the last two axes, edges mirrored."""
    h, w = image.shape[-2:]
    p = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(2, 2), (2, 2)], mode="symmetric")
    four, six, norm = np.float32(4), np.float32(6), np.float32(1 / 256)
    p = (p[..., :h, :] + p[..., 4:, :]) + four * (p[..., 1 : h + 1, :] + p[..., 3:-1, :]) + six * p[..., 2:-2, :]
    p = (p[..., :w] + p[..., 4:]) + four * (p[..., 1 : w + 1] + p[..., 3:-1]) + six * p[..., 2:-2]
    smooth: Array = p * norm
    return smooth


def _length(a: Array, b: Array) -> Array:
    """Length of the vector (a, b); np.hypot guards against an overflow that cannot happen here, and is far slower."""
    length: Array = np.sqrt(a * a + b * b)
    return length


def _correlation(a: Array, b: Array) -> float:
    """Pearson correlation, shrunk to 0 where either side hardly varies."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / (np.sqrt((a * a).mean() * (b * b).mean()) + 1e-5))


def _share(counts: Values, floor: float = 0.0) -> Values:
    """Square roots of the shares of a histogram, in [0, 1]; a `floor` added to the total lets faint ones fade to 0."""
    roots: Values = np.sqrt(counts / (counts.sum() + floor))
    return roots


def _stain_features(row: _Row, stains: Array) -> None:
    """Levels, joint histogram and co-variation of the stains [3, h, w]."""
    flat = stains.reshape(3, -1)
    half = _halve(stains)
    ordered = np.sort(half.reshape(3, -1), axis=1)  # of 2 x 2 means: four times faster, and less of the noise
    at = [round(q * (ordered.shape[1] - 1)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    mean = flat.mean(axis=1, keepdims=True)
    away = flat - mean
    square = away * away
    spread = np.sqrt(square.mean(axis=1))
    skew = (square * away).mean(axis=1) / (spread**3 + 1e-4)
    for s, stain in enumerate(_STAINS):
        row.add("density", f"stain/{stain}", ("p05", "p25", "p50", "p75", "p95"), ordered[s, at])
        row.add("spread", f"stain/{stain}", ("spread",), [np.log(spread[s] + 0.01)])
        row.add("signed", f"stain/{stain}", ("skew",), [np.tanh(skew[s] / 2)])

    pairs = ((0, 1), (0, 2), (1, 2))
    eighth = _halve(_halve(half))
    for size, image in ((1, stains), (8, eighth), (16, _halve(eighth))):
        values = [_correlation(image[a], image[b]) for a, b in pairs]
        row.add("signed", f"stain/blocks{size}", ("corr_he", "corr_hr", "corr_er"), values)
        if size > 1:
            spreads = np.log(image.reshape(3, -1).std(axis=1) + 0.01)
            row.add("spread", f"stain/blocks{size}", [f"spread_{s[0]}" for s in _STAINS], spreads)

    # Bins of equal width over the range of stained tissue; what lies outside goes to the end bins.
    nh, ne = _JOINT
    hb = np.clip((stains[0] + 0.05) * (nh / 0.8), 0, nh - 1).astype(np.intp)
    eb = np.clip((stains[1] + 0.05) * (ne / 0.5), 0, ne - 1).astype(np.intp)
    joint = _share(np.bincount((hb * ne + eb).ravel(), minlength=nh * ne))
    row.add("fraction", "stain", ("eosin_fraction",), [np.sqrt((half[1] > 0.3).mean())])
    row.add("joint", "stain/joint", [f"h{i}e{j}" for i in range(nh) for j in range(ne)], joint)


def _oriented_features(row: _Row, scale: int, smooth: Array) -> None:
    """Gaussian derivatives of haematoxylin and eosin [2, h, w] at one scale, summarised free of orientation."""
    p = np.pad(smooth, [(0, 0), (1, 1), (1, 1)], mode="symmetric")
    half = np.float32(0.5)
    across = p[:, :, 2:] - p[:, :, :-2]
    gx = across[:, 1:-1] * half
    gy = (p[:, 2:, 1:-1] - p[:, :-2, 1:-1]) * half
    gxy = (across[:, 2:] - across[:, :-2]) * np.float32(0.25)
    gxx = p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 2 * smooth
    gyy = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] - 2 * smooth

    # First derivatives: the structure tensor, over the patch and over blocks of 4 x 4 pixels of this scale.
    xx, yy, xy = gx * gx, gy * gy, gx * gy
    energy = xx + yy
    tensor = np.stack([xx - yy, 2 * xy, energy])
    local = _halve(_halve(tensor))
    mean = local.mean(axis=(2, 3))
    strength = _length(local[0], local[1])
    energy_spread = local[2].std(axis=(1, 2))
    magnitude = np.sqrt(energy).mean(axis=(1, 2))

    # Second derivatives: half trace and half difference of the eigenvalues; the sign of the trace tells dark
    # (dense) blobs from bright ones, its weight against the difference tells blobs from lines from saddles.
    trace, bend = gxx + gyy, _length(gxx - gyy, 2 * gxy)
    curved = _length(trace, bend)
    shape = trace / (np.abs(trace) + bend + np.float32(1e-9))
    bins = np.minimum(((shape + 1) * (_SHAPE_BINS / 2)).astype(np.intp), _SHAPE_BINS - 1)
    for s in range(2):
        prefix = f"oriented/{_STAINS[s]}/scale{scale}"
        total = float(mean[2, s])
        row.add("energy", prefix, ("edge_energy",), [np.log(total + 1e-6)])
        second = float((curved[s] * curved[s]).mean())
        row.add("energy", prefix, ("line_energy",), [np.log(second + 1e-6)])
        row.add("directed", prefix, ("anisotropy",), [np.hypot(mean[0, s], mean[1, s]) / (total + 1e-6)])
        values = [
            strength[s].mean() / (total + 1e-6),
            magnitude[s] / np.sqrt(total + 1e-6),
            energy_spread[s] / (energy_spread[s] + total + 1e-6),
        ]
        row.add("local", prefix, ("coherence", "evenness", "patchiness"), values)
        # Weighed by curvature; the floor, 1/40 of what tissue has, keeps rounding errors of flat patches out.
        counts = np.bincount(bins[s].ravel(), curved[s].ravel(), _SHAPE_BINS)
        row.add("shape", prefix, [f"shape{i}" for i in range(_SHAPE_BINS)], _share(counts, 1e-3 * curved[s].size))
    together = float((gx[0] * gx[1] + gy[0] * gy[1]).mean() / (np.sqrt(mean[2, 0] * mean[2, 1]) + 1e-5))
    row.add("signed", f"oriented/cross/scale{scale}", ("edges_he",), [together])


def _pattern_features(row: _Row, scale: int, image: Array) -> None:
    """Rotation-invariant uniform local binary patterns (8 neighbours, radius 1) of an image [h, w]."""
    h, w = image.shape
    centre = image[1:-1, 1:-1] + np.float32(0.004)  # a margin: smooth areas give pattern 0, not noise
    code = np.zeros(centre.shape, np.uint8)
    for bit, (dy, dx) in enumerate(_RING):
        code |= (image[1 + dy : h - 1 + dy, 1 + dx : w - 1 + dx] > centre).view(np.uint8) << np.uint8(bit)
    counts = np.bincount(_RIU2, np.bincount(code.ravel(), minlength=256), 10)
    row.add("pattern", f"pattern/scale{scale}", [f"ones{i}" for i in range(9)] + ["mixed"], _share(counts))


class _Objects:
    """Moments of the connected regions of a mask [h, w] with at least `smallest` pixels; arrays over regions [n]."""

    def __init__(self, mask: Mask, smallest: int) -> None:
        labels, count = ndimage.label(mask)
        where = np.flatnonzero(labels)
        label = labels.ravel()[where] - 1
        area = np.bincount(label, minlength=count)
        big = area >= smallest
        renumber = np.cumsum(big) - 1
        kept = big[label]
        self.where = where[kept]  # pixels of the kept regions, flat
        self.label = renumber[label[kept]]  # region of each such pixel
        self.n = int(big.sum())
        self.area = area[big].astype(np.float64)
        y, x = np.divmod(self.where, mask.shape[1])
        self.y, self.x = self.mean(y), self.mean(x)
        dy, dx = y - self.y[self.label], x - self.x[self.label]
        vy, vx, vxy = self.mean(dy * dy) + 1 / 12, self.mean(dx * dx) + 1 / 12, self.mean(dx * dy)
        self.cos, self.sin = vx - vy, 2 * vxy
        root = np.hypot(self.cos, self.sin)
        self.eccentricity = np.sqrt(np.maximum(2 * root / (vx + vy + root + 1e-9), 0))
        # 1 for a filled ellipse, less for a ragged or bent region.
        self.fullness = self.area / (4 * np.pi * np.sqrt(np.maximum(vx * vy - vxy * vxy, 1e-9)))

    def mean(self, values: Values) -> Values:
        """Mean over each region of one value per kept pixel."""
        means: Values = np.bincount(self.label, values, self.n) / np.maximum(self.area, 1)
        return means


def _otsu(values: Values, low: float, high: float) -> float:
    """Threshold between `low` and `high` that parts the values best in two (Otsu)."""
    bins = 64
    at = np.clip((values - low) * (bins / (high - low)), 0, bins - 1).astype(np.intp)
    counts = np.bincount(at, minlength=bins).astype(np.float64)
    below = np.cumsum(counts)
    sums = np.cumsum(counts * np.arange(bins))
    above = below[-1] - below
    between = (sums[-1] * below - sums * below[-1]) ** 2 / np.maximum(below * above, 1)
    return low + (float(np.argmax(between)) + 1) * (high - low) / bins


def _quantiles(values: Values, default: float) -> Values:
    """10, 50 and 90 % of the values [n]; the default where there are none."""
    if not len(values):
        return np.full(3, default)
    ordered: Values = np.sort(values)
    return ordered[[round(q * (len(values) - 1)) for q in (0.1, 0.5, 0.9)]]


def _median(values: Values) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _nuclei_features(row: _Row, stains: Array, smooth: Array, background: Array) -> None:
    """Nuclei: smoothed haematoxylin [h, w] above an Otsu threshold and above its surroundings [h, w]."""
    h, w = smooth.shape
    tissue = smooth[smooth > 0.05]
    threshold = min(max(_otsu(tissue, 0.0, 1.0), 0.12), 0.6) if tissue.size else 0.6
    dense = smooth > threshold
    objects = _Objects(dense & (smooth > background), _MIN_NUCLEUS)
    n, area = objects.n, objects.area
    inside = stains[0].ravel()[objects.where]
    chroma = objects.mean(inside)
    grain = np.sqrt(np.maximum(objects.mean((inside - chroma[objects.label]) ** 2), 0))
    eosin = objects.mean(stains[1].ravel()[objects.where])
    log_area = np.log(np.maximum(area, 1))
    # What lies around nuclei is mostly cytoplasm, what lies far from them mostly stroma.
    reach = ndimage.uniform_filter(dense.astype(np.float32), 9, mode="nearest") > 0.01
    zones = (dense, reach & ~dense, ~reach)
    levels = [[float(stain[zone].mean()) if zone.any() else 0.0 for stain in stains] for zone in zones]
    contrast = _median(chroma) - levels[2][0]

    row.add("count", "nuclei", ("density",), [np.log1p(n * 1e4 / (h * w))])
    shares = [area.sum() / (h * w), dense.mean(), (smooth > threshold + 0.1).mean()]
    row.add("fraction", "nuclei", ("area_fraction", "dense_fraction", "dark_fraction"), shares)
    for zone, level in zip(("nuclear", "near", "far"), levels, strict=True):
        row.add("density", f"nuclei/{zone}", _STAINS, level)
    row.add("size", "nuclei/log_area", _TENTHS, _quantiles(log_area, 0.0))
    row.add("outline", "nuclei/eccentricity", _TENTHS, _quantiles(objects.eccentricity, 0.0))
    row.add("outline", "nuclei/fullness", _TENTHS, _quantiles(objects.fullness, 0.0))
    row.add("density", "nuclei/chromatin", _TENTHS, _quantiles(chroma, 0.0))
    row.add("variety", "nuclei/grain", _TENTHS, np.log(_quantiles(grain, 0.0) + 0.01))
    row.add("density", "nuclei", ("threshold", "contrast", "eosin"), [threshold, contrast, _median(eosin)])
    spread = [np.log(log_area.std() + 0.05) if n > 1 else -3, np.log(chroma.std() + 0.01) if n > 1 else -4.6]
    row.add("variety", "nuclei", ("area_spread", "chromatin_spread"), spread)

    _layout_features(row, objects, h, w)


def _layout_features(row: _Row, objects: _Objects, h: int, w: int) -> None:
    """How the nuclei lie to each other in a patch of h x w pixels."""
    n = objects.n
    long = np.hypot(objects.cos, objects.sin)  # how far each is from round, in square pixels
    near, cluster, parallel, crowded, gap_spread = np.zeros(0), 0.0, 0.0, 0.0, -3.0
    if n > 2:
        points = np.stack([objects.y, objects.x], axis=1)
        distance, nearest = cKDTree(points).query(points, k=2)  # the first found is the point itself
        near, other = np.asarray(distance)[:, 1], np.asarray(nearest)[:, 1]
        gap_spread = np.log(np.log(near + 1).std() + 0.05)
        crowded = float((near < 1.5 * np.sqrt(objects.area * 4 / np.pi)).mean())
        dot = objects.cos * objects.cos[other] + objects.sin * objects.sin[other]
        parallel = float(dot.sum() / ((long * long[other]).sum() + 1e-6))
        cluster = float(np.tanh(near.mean() * 2 * np.sqrt(n / (h * w)) - 1))  # Clark-Evans: 0 at random
    row.add("size", "nuclei/log_gap", _TENTHS, np.log(_quantiles(near, 1.0) + 1))
    row.add("signed", "nuclei", ("regularity", "parallel"), [cluster, parallel])
    row.add("fraction", "nuclei", ("crowded",), [crowded])
    row.add("variety", "nuclei", ("gap_spread",), [gap_spread])
    row.add(
        "directed", "nuclei", ("alignment",), [np.hypot(objects.cos.sum(), objects.sin.sum()) / (long.sum() + 1e-6)]
    )
    # Unevenness over a 4 x 4 grid: variance of the counts over their mean is 1 for a random scatter.
    cell = ((objects.y + 0.5) * 4 / h).astype(np.intp) * 4 + ((objects.x + 0.5) * 4 / w).astype(np.intp)
    counts = np.bincount(cell, minlength=16)
    row.add("signed", "nuclei", ("unevenness",), [np.tanh(np.log((counts.var() + 0.5) / (counts.mean() + 0.5)) / 2)])


def _lumen_features(row: _Row, density: Array, stains: Array) -> None:
    """Open space: bright regions of the mean optical density [h, w] of the half-size patch."""
    h, w = density.shape
    white = density < _WHITE_DENSITY
    objects = _Objects(white, _MIN_LUMEN)
    rim = float((white[1:] != white[:-1]).sum() + (white[:, 1:] != white[:, :-1]).sum())
    fraction = float(white.mean())
    largest = float(objects.area.max()) / (h * w) if objects.n else 0.0
    pale = float((density < 2 * _WHITE_DENSITY).mean())
    coarse = _halve(_halve(_halve(white.astype(np.float32))))  # blocks of 16 pixels of the patch
    values = [np.sqrt(fraction), np.sqrt(pale), np.sqrt(largest), 2 * rim / (h * w), 2 * float(coarse.std())]
    row.add("fraction", "lumen", ("fraction", "pale", "largest", "rim", "unevenness"), values)
    # The lining: what lies within two pixels of the open space, the epithelium where the space is a lumen.
    lining = (ndimage.uniform_filter(white.astype(np.float32), 5, mode="nearest") > 0.01) & ~white
    level = [float(stain[lining].mean()) if lining.any() else 0.0 for stain in stains[:2]]
    row.add("density", "lumen/lining", _STAINS[:2], level)
    row.add("count", "lumen", ("density",), [np.log1p(objects.n * 1e4 / (4 * h * w))])
    row.add("size", "lumen", ("log_area",), [np.log(_median(objects.area) * 4 + 1)])
    outline = [_median(objects.eccentricity), _median(objects.fullness)]
    row.add("outline", "lumen", ("eccentricity", "fullness"), outline)


def _describe(patch: npt.NDArray[np.uint8]) -> _Row:
    """All features of one patch [H, W, 3]."""
    row = _Row()
    red, green, blue = _DENSITY[np.ascontiguousarray(patch.transpose(2, 0, 1))]
    stains = np.stack([u[0] * red + u[1] * green + u[2] * blue for u in _UNMIX])
    _stain_features(row, stains)
    level = stains[:2]
    smooths = []
    for scale in range(_SCALE_COUNT):
        smooths.append(_smooth(level))
        _oriented_features(row, scale, smooths[-1])
        level = _halve(level)
    for scale in range(3):
        _pattern_features(row, scale, smooths[scale][0])
    first = smooths[0][0]
    h, w = first.shape
    around = smooths[3][0]
    rows, columns = (np.minimum(np.arange(side) // 8, n - 1) for side, n in zip((h, w), around.shape, strict=True))
    background = around[rows[:, None], columns]  # each pixel's block of 8 x 8, smoothed over its neighbours
    _nuclei_features(row, stains, first, background)
    _lumen_features(row, _halve((red + green + blue) * np.float32(1 / 3)), _halve(stains))
    return row


class TextureEncoder:
    """Patches of H&E to WIDTH texture features, on the CPU, the same on every run; safe to share between threads."""

    name = "texture"
    width = WIDTH
    patch_size: int | None = None  # any size from MIN_SIDE pixels
    feature_names: tuple[str, ...] = tuple(_describe(np.full((MIN_SIDE, MIN_SIDE, 3), 255, np.uint8)).names)

    def __call__(self, patches: npt.NDArray[np.uint8]) -> Array:
        """Features float32 [B, WIDTH] of patches uint8 [B, H, W, 3] in RGB order, with H and W at least 32 pixels.

        A patch gives the same bits alone and in any batch. Raises InputError (a ValueError) for another shape or type.
        """
        patches = np.asarray(patches)
        if patches.dtype != np.uint8:
            raise InputError(f"texture: patches are {patches.dtype}, and must be uint8 (0 to 255)")
        if patches.ndim != 4 or patches.shape[3] != 3:
            raise InputError(f"texture: patches have shape {patches.shape}, and must be [B, H, W, 3]")
        if min(patches.shape[1:3]) < MIN_SIDE:
            raise InputError(f"texture: patches have shape {patches.shape}; H and W must be at least {MIN_SIDE} pixels")
        out = np.empty((len(patches), WIDTH), np.float32)
        for i, patch in enumerate(patches):
            out[i] = np.clip(_describe(patch).values, -LIMIT, LIMIT)
        return out
