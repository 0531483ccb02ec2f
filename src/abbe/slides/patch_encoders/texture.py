"""`texture`: the patch encoder that needs no weights.

A patch of haematoxylin and eosin (H&E) tissue becomes WIDTH numbers about stain, texture, nuclei and open space.
Nothing is learned: every feature is a formula, and the constants that scale features to about zero mean and unit spread
belong to a *kind* of feature (`SCALES`). Features do not depend on the orientation of a patch, and are measured in
pixels: all patches of a cohort should have the same resolution.

Sources
    Stains               Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23, 2001
    Region covariance    Tuzel, Porikli and Meer, ECCV 2006
    Its logarithm        Arsigny, Fillard, Pennec and Ayache, Magnetic Resonance in Medicine 56, 2006 (log-Euclidean)
    Threshold            Otsu, IEEE Transactions on Systems, Man and Cybernetics 9, 1979
    Point clustering     Clark and Evans, Ecology 35, 1954
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from abbe.errors import InputError
from abbe.slides.patch_encoders.patches import check_patches
from abbe.slides.patch_encoders.texture_base import STAINS, Array, Row, halve
from abbe.slides.patch_encoders.texture_nuclei import lumen_features, nuclei_features

WIDTH = 256
LIMIT = 10.0  # scaled features are clipped here; ink and black folds reach it, tissue hardly ever does
MIN_SIDE = 32  # pixels; leaves 4 x 4 at the coarsest of the four scales

# Unit optical density of each stain in red, green and blue; the residual is orthogonal to both.
_STAIN = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_STAIN = np.vstack([_STAIN, np.cross(_STAIN[0], _STAIN[1])])
_STAIN /= np.linalg.norm(_STAIN, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAIN).T.astype(np.float32)  # [stain, colour]
_DENSITY = (-np.log10((np.arange(256) + 1.0) / 256.0)).astype(np.float32)  # 0 to 2.4; no infinity at 0

_SCALE_COUNT = 4
# Round numbers near the standard deviation of each kind of map over H&E tissue. They make the maps comparable, so that
# NOISE, a variance added in every direction, is the same small share of each.
_LEVEL_SPREAD = 0.1
_SLOPE_SPREAD = 0.03
NOISE = 1e-3
CHANNELS = (
    *STAINS,
    *(f"{kind}{scale}_{stain}" for scale in range(_SCALE_COUNT) for kind in ("edge", "blob") for stain in STAINS[:2]),
)


def _smooth(image: Array) -> Array:
    """Binomial filter 1 4 6 4 1 (about a Gaussian of sigma 1 pixel) over the last two axes, edges mirrored."""
    h, w = image.shape[-2:]
    p = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(2, 2), (2, 2)], mode="symmetric")
    four, six, norm = np.float32(4), np.float32(6), np.float32(1 / 256)
    p = (p[..., :h, :] + p[..., 4:, :]) + four * (p[..., 1 : h + 1, :] + p[..., 3:-1, :]) + six * p[..., 2:-2, :]
    p = (p[..., :w] + p[..., 4:]) + four * (p[..., 1 : w + 1] + p[..., 3:-1]) + six * p[..., 2:-2]
    smooth: Array = p * norm
    return smooth


def _edges_and_blobs(smooth: Array) -> tuple[Array, Array]:
    """Gradient magnitude and Laplacian of smoothed images [n, h, w], edges mirrored."""
    p = np.pad(smooth, [(0, 0), (1, 1), (1, 1)], mode="symmetric")
    left, right, up, down = p[:, 1:-1, :-2], p[:, 1:-1, 2:], p[:, :-2, 1:-1], p[:, 2:, 1:-1]
    x, y = right - left, down - up
    # np.hypot is far slower: it guards against overflow, which cannot happen here.
    return np.sqrt(x * x + y * y) * np.float32(0.5), left + right + up + down - 4 * smooth


def _stain_features(row: Row, stains: Array) -> None:
    """Quantiles and skewness of the stains [3, h, w], and the share of dense eosin."""
    half = halve(stains).reshape(3, -1)  # 2 x 2 means: faster to sort, and less noise
    ordered = np.sort(half, axis=1)
    ranks = [round(q * (ordered.shape[1] - 1)) for q in (0.05, 0.5, 0.95)]
    centred = half - half.mean(axis=1, keepdims=True)
    square = centred * centred
    skew = (square * centred).mean(axis=1) / (square.mean(axis=1) ** 1.5 + 1e-4)
    for s, stain in enumerate(STAINS):
        row.add("density", f"stain/{stain}", ("p05", "p50", "p95"), ordered[s, ranks])
        row.add("signed", f"stain/{stain}", ("skew",), [np.tanh(skew[s] / 2)])
    row.add("fraction", "stain", ("eosin_fraction",), [np.sqrt((half[1] > 0.3).mean())])


def _channels(stains: Array, smooths: list[Array]) -> Array:
    """The maps whose covariance is computed, float32 [19, h, w] on the grid of the half-size patch.

    The three stains, then edges and blobs of haematoxylin and eosin at each scale. Finer maps are averaged and coarser
    ones repeated, so that covariances across scales describe which structures lie within which.
    """
    h, w = (4 * side for side in smooths[3].shape[1:])
    maps = [halve(stains)[:, :h, :w] / np.float32(_LEVEL_SPREAD)]
    for scale, smooth in enumerate(smooths):
        for kind in _edges_and_blobs(smooth / np.float32(_SLOPE_SPREAD)):
            times = 2 ** max(scale - 1, 0)
            same = kind.repeat(times, axis=1).repeat(times, axis=2) if scale else halve(kind)
            maps.append(same[:, :h, :w])
    return np.concatenate(maps)


def _covariance_features(row: Row, channels: Array) -> None:
    """Matrix logarithm of the covariance of the channels: logarithms can be added, as a linear model does."""
    n = len(channels)
    flat = channels.reshape(n, -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh((flat @ flat.T).astype(np.float64) / flat.shape[1])
    log = (vectors * np.log(np.maximum(values, 0) + NOISE)) @ vectors.T
    a, b = np.triu_indices(n, 1)
    row.add("variance", "covariance", CHANNELS, np.diagonal(log))
    row.add("covariance", "covariance", [f"{CHANNELS[i]}*{CHANNELS[j]}" for i, j in zip(a, b, strict=True)], log[a, b])


def _unmix(density: Array) -> Array:
    """Optical densities of the stains [3, h, w] from those of red, green and blue [3, h, w]."""
    return np.stack([u[0] * density[0] + u[1] * density[1] + u[2] * density[2] for u in _UNMIX])


def _pyramid(level: Array) -> list[Array]:
    """The images [n, h, w], smoothed, at each scale; each scale has half the size of the one before."""
    smooths = []
    for _ in range(_SCALE_COUNT):
        smooths.append(_smooth(level))
        level = halve(level)
    return smooths


def _describe(patch: npt.NDArray[np.uint8]) -> Row:
    """All features of one patch [H, W, 3]."""
    row = Row()
    density = _DENSITY[np.ascontiguousarray(patch.transpose(2, 0, 1))]
    stains = _unmix(density)
    _stain_features(row, stains)
    smooths = _pyramid(stains[:2])
    _covariance_features(row, _channels(stains, smooths))
    first = smooths[0][0]
    h, w = first.shape
    around = smooths[3][0]
    rows, columns = (np.minimum(np.arange(side) // 8, n - 1) for side, n in zip((h, w), around.shape, strict=True))
    background = around[rows[:, None], columns]  # per pixel, its block of 8 x 8 smoothed with the neighbouring blocks
    nuclei_features(row, stains, first, background)
    lumen_features(row, halve(density.mean(axis=0)), halve(stains))
    return row


class TextureEncoder:
    """WIDTH texture features of H&E patches, on the CPU; deterministic, and threads may share it."""

    name = "texture"
    width = WIDTH
    version = 2  # raise it when features change: features of another version are not taken as done
    patch_size: int | None = None  # any size from MIN_SIDE pixels
    feature_names: tuple[str, ...] = tuple(_describe(np.full((MIN_SIDE, MIN_SIDE, 3), 255, np.uint8)).names)

    def __call__(self, patches: npt.NDArray[np.uint8]) -> Array:
        """Features float32 [B, WIDTH] of patches uint8 [B, H, W, 3] (RGB), with H and W at least MIN_SIDE.

        A patch has bitwise the same features in any batch. Raises InputError (a ValueError) for another shape or dtype.
        """
        patches = check_patches(self.name, patches)
        if min(patches.shape[1:3]) < MIN_SIDE:
            raise InputError(f"texture: patches are {patches.shape}; H and W must be at least {MIN_SIDE} pixels")
        out = np.empty((len(patches), WIDTH), np.float32)
        for i, patch in enumerate(patches):
            out[i] = np.clip(_describe(patch).values, -LIMIT, LIMIT)
        return out
