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

import numpy as np
import numpy.typing as npt

from abbe.errors import InputError
from abbe.slides.texture_base import SCALES, STAINS, Array, Row, Values, halve
from abbe.slides.texture_nuclei import lumen_features, nuclei_features

__all__ = ["LIMIT", "MIN_SIDE", "SCALES", "WIDTH", "TextureEncoder"]

WIDTH = 256
LIMIT = 10.0  # scaled features are cut here, which H&E tissue hardly reaches: ink and black folds do
MIN_SIDE = 32  # pixels: four scales then leave a 4 x 4 image at the coarsest

# Unit optical density of each stain in red, green and blue; the residual is orthogonal to both.
_STAIN = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_STAIN = np.vstack([_STAIN, np.cross(_STAIN[0], _STAIN[1])])
_STAIN /= np.linalg.norm(_STAIN, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAIN).T.astype(np.float32)  # [stain, colour]
_DENSITY = (-np.log10((np.arange(256) + 1.0) / 256.0)).astype(np.float32)  # 0 to 2.4; no infinity at 0

_SCALE_COUNT = 4
_SHAPE_BINS = 6
_JOINT = (6, 6)


def _riu2_table() -> npt.NDArray[np.intp]:
    """Bin of each 8-bit pattern: its count of ones if it has at most two changes round the ring, else 9."""
    codes = np.arange(256)
    bits = (codes[:, None] >> np.arange(8)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9)


_RIU2 = _riu2_table()
# Eight neighbours in ring order, (row, column).
_RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


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


def _stain_features(row: Row, stains: Array) -> None:
    """Levels, joint histogram and co-variation of the stains [3, h, w]."""
    flat = stains.reshape(3, -1)
    half = halve(stains)
    ordered = np.sort(half.reshape(3, -1), axis=1)  # of 2 x 2 means: four times faster, and less of the noise
    at = [round(q * (ordered.shape[1] - 1)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    mean = flat.mean(axis=1, keepdims=True)
    away = flat - mean
    square = away * away
    spread = np.sqrt(square.mean(axis=1))
    skew = (square * away).mean(axis=1) / (spread**3 + 1e-4)
    for s, stain in enumerate(STAINS):
        row.add("density", f"stain/{stain}", ("p05", "p25", "p50", "p75", "p95"), ordered[s, at])
        row.add("spread", f"stain/{stain}", ("spread",), [np.log(spread[s] + 0.01)])
        row.add("signed", f"stain/{stain}", ("skew",), [np.tanh(skew[s] / 2)])

    pairs = ((0, 1), (0, 2), (1, 2))
    eighth = halve(halve(half))
    for size, image in ((1, stains), (8, eighth), (16, halve(eighth))):
        values = [_correlation(image[a], image[b]) for a, b in pairs]
        row.add("signed", f"stain/blocks{size}", ("corr_he", "corr_hr", "corr_er"), values)
        if size > 1:
            spreads = np.log(image.reshape(3, -1).std(axis=1) + 0.01)
            row.add("spread", f"stain/blocks{size}", [f"spread_{s[0]}" for s in STAINS], spreads)

    # Bins of equal width over the range of stained tissue; what lies outside goes to the end bins.
    nh, ne = _JOINT
    hb = np.clip((stains[0] + 0.05) * (nh / 0.8), 0, nh - 1).astype(np.intp)
    eb = np.clip((stains[1] + 0.05) * (ne / 0.5), 0, ne - 1).astype(np.intp)
    joint = _share(np.bincount((hb * ne + eb).ravel(), minlength=nh * ne))
    row.add("fraction", "stain", ("eosin_fraction",), [np.sqrt((half[1] > 0.3).mean())])
    row.add("joint", "stain/joint", [f"h{i}e{j}" for i in range(nh) for j in range(ne)], joint)


def _oriented_features(row: Row, scale: int, smooth: Array) -> None:
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
    local = halve(halve(tensor))
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
        prefix = f"oriented/{STAINS[s]}/scale{scale}"
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


def _pattern_features(row: Row, scale: int, image: Array) -> None:
    """Rotation-invariant uniform local binary patterns (8 neighbours, radius 1) of an image [h, w]."""
    h, w = image.shape
    centre = image[1:-1, 1:-1] + np.float32(0.004)  # a margin: smooth areas give pattern 0, not noise
    code = np.zeros(centre.shape, np.uint8)
    for bit, (dy, dx) in enumerate(_RING):
        code |= (image[1 + dy : h - 1 + dy, 1 + dx : w - 1 + dx] > centre).view(np.uint8) << np.uint8(bit)
    counts = np.bincount(_RIU2, np.bincount(code.ravel(), minlength=256), 10)
    row.add("pattern", f"pattern/scale{scale}", [f"ones{i}" for i in range(9)] + ["mixed"], _share(counts))


def _describe(patch: npt.NDArray[np.uint8]) -> Row:
    """All features of one patch [H, W, 3]."""
    row = Row()
    red, green, blue = _DENSITY[np.ascontiguousarray(patch.transpose(2, 0, 1))]
    stains = np.stack([u[0] * red + u[1] * green + u[2] * blue for u in _UNMIX])
    _stain_features(row, stains)
    level = stains[:2]
    smooths = []
    for scale in range(_SCALE_COUNT):
        smooths.append(_smooth(level))
        _oriented_features(row, scale, smooths[-1])
        level = halve(level)
    for scale in range(3):
        _pattern_features(row, scale, smooths[scale][0])
    first = smooths[0][0]
    h, w = first.shape
    around = smooths[3][0]
    rows, columns = (np.minimum(np.arange(side) // 8, n - 1) for side, n in zip((h, w), around.shape, strict=True))
    background = around[rows[:, None], columns]  # each pixel's block of 8 x 8, smoothed over its neighbours
    nuclei_features(row, stains, first, background)
    lumen_features(row, halve((red + green + blue) * np.float32(1 / 3)), halve(stains))
    return row


class TextureEncoder:
    """Patches of H&E to WIDTH texture features, on the CPU, the same on every run; safe to share between threads."""

    name = "texture"
    width = WIDTH
    version = 1  # raise it when features change: outputs made with another one are not taken as done
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
