"""Shared by the parts of `texture`: the kinds of features, how each is scaled, and the row that collects them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]

# A feature is stored as (value - centre) / spread. The two constants are round numbers near the mean and the standard
# deviation of its kind over H&E tissue.
SCALES: dict[str, tuple[float, float]] = {
    "density": (0.2, 0.15),  # optical densities of a stain
    "signed": (0.1, 0.4),  # regularity of points, skewness after tanh: within [-1, 1]
    "variance": (-1.3, 0.8),  # on the diagonal of the logarithm of the covariance
    "covariance": (0.0, 0.2),  # off the diagonal
    "directed": (0.18, 0.14),  # alignment of directions over the patch, 0 to 1
    "outline": (0.8, 0.12),  # eccentricity and fullness of regions, 0 to 1
    "fraction": (0.35, 0.25),  # shares of the patch's area, or their square roots
    "variety": (-1.8, 0.6),  # log of a standard deviation over nuclei or within one
    "size": (3.9, 1.0),  # log of areas (square pixels) and distances (pixels)
    "count": (1.8, 0.7),  # log of one plus a count per 10,000 pixels
}

STAINS = ("hematoxylin", "eosin", "residual")


class Row:
    """Collects the names and scaled values of the features of one patch, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[float] = []

    def add(self, kind: str, prefix: str, names: Iterable[object], values: Sequence[float] | Values) -> None:
        centre, spread = SCALES[kind]
        self.names += [f"{prefix}/{name}" for name in names]
        self.values += [(float(value) - centre) / spread for value in values]


def halve(image: Array) -> Array:
    """Means of 2 x 2 blocks over the last two axes; an odd last row or column is dropped."""
    h, w = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    rows = image[..., 0:h:2, :w] + image[..., 1:h:2, :w]
    quarters: Array = (rows[..., 0::2] + rows[..., 1::2]) * np.float32(0.25)
    return quarters
