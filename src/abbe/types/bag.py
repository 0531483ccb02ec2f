"""One slide as a bag of patch features."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from abbe.errors import BagError, MissingCoordinates
from abbe.types.show import html_table
from abbe.types.units import MPP, Px0


@dataclass(frozen=True, eq=False)
class Bag:
    """One slide as a bag of patch features.

    features: [N, D] float32 or float16, on the CPU, finite.
    coords: [N, 2] float64, top-left corners (x, y) in level-0 pixels, or None for a bare bag.
    patch_size_level0: side of a patch; None exactly when coords is None.
    stride_level0: step between patches, if known.
    mpp: of level 0, if known.  level0_size: (width, height) of the slide in level-0 pixels, if known.
    encoder: name of the patch encoder.  source: the file the bag was read from, named in errors.

    Raises BagError for any contradiction: lengths that differ, NaN or infinite values, negative, duplicate or outside
    coordinates. A patch may overhang the right and lower border by less than its own size.
    """

    features: Tensor
    coords: Tensor | None
    patch_size_level0: Px0 | None
    slide_id: str
    _: KW_ONLY
    stride_level0: Px0 | None = None
    mpp: MPP | None = None
    level0_size: tuple[int, int] | None = None
    encoder: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        features = torch.as_tensor(self.features)
        self._require(features.ndim == 2, f"features must be [N, D], got shape {tuple(features.shape)}")
        self._require(
            features.dtype in (torch.float32, torch.float16),
            f"features must be float32 or float16, got {features.dtype}",
        )
        self._require(features.device.type == "cpu", f"features must be on the CPU, got {features.device}")
        finite = torch.isfinite(features)
        if not bool(finite.all()):
            row, column = torch.nonzero(~finite)[0].tolist()
            value = float(features[row, column])
            raise self._error(f"features[{row}, {column}] is {value}; every feature must be finite")
        object.__setattr__(self, "features", features)
        self._require(bool(self.slide_id), "slide_id is empty")
        self._require(
            (self.coords is None) == (self.patch_size_level0 is None),
            "coords and patch_size_level0 go together: give both or neither",
        )
        for name in ("patch_size_level0", "stride_level0", "mpp"):
            value = getattr(self, name)
            self._require(
                value is None or (math.isfinite(value) and value > 0), f"{name} must be a positive number, got {value}"
            )
        if self.coords is not None:
            object.__setattr__(self, "coords", self._checked_coords(len(features)))

    def _checked_coords(self, n: int) -> Tensor:
        coords = torch.as_tensor(self.coords).to(torch.float64)
        self._require(coords.shape == (n, 2), f"coords must be [{n}, 2] like the features, got {tuple(coords.shape)}")
        for bad, what in (
            (~torch.isfinite(coords).all(1), "is not finite"),
            ((coords < 0).any(1), "is negative"),
        ):
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                raise self._error(f"coords[{row}] = {coords[row].tolist()} {what}")
        unique, first = np.unique(coords.numpy(), axis=0, return_index=True)
        if len(unique) < n:
            row = int(np.setdiff1d(np.arange(n), first)[0])
            raise self._error(f"coords[{row}] = {coords[row].tolist()} is duplicated")
        if self.level0_size is not None:
            # Tilers pad the last column and row, so a patch may overhang the border.
            outside = (coords >= torch.tensor(self.level0_size, dtype=torch.float64)).any(1)
            if bool(outside.any()):
                row = int(outside.nonzero()[0])
                raise self._error(
                    f"coords[{row}] = {coords[row].tolist()} is outside the slide of {self.level0_size} level-0 pixels"
                )
        return coords

    def _require(self, ok: bool, message: str) -> None:  # noqa: FBT001
        if not ok:
            raise self._error(message)

    def _error(self, message: str) -> BagError:
        return BagError(f"{self.source or 'bag'} ({self.slide_id or 'no slide_id'}): {message}")

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        encoder = repr(self.encoder) if self.encoder else "unknown"
        size = "no coordinates" if self.coords is None else f"patch_size_level0={_number(self.patch_size_level0)}"
        shape = f"{len(self)} × {self.width}"
        return f"Bag({self.slide_id!r}, {shape}, encoder={encoder}, mpp={_number(self.mpp)}, {size})"

    def _repr_html_(self) -> str:
        size = self.level0_size
        rows = {
            "patches": f"{len(self)} × {self.width} {str(self.features.dtype).removeprefix('torch.')}",
            "encoder": self.encoder or "unknown",
            "mpp at level 0": _number(self.mpp),
            "patch size, level-0 pixels": _number(self.patch_size_level0),
            "slide size, level-0 pixels": "unknown" if size is None else f"{size[0]} × {size[1]}",
        }
        return html_table(f"Bag {self.slide_id}", list(rows.items()))

    @property
    def width(self) -> int:
        """D, the width of a feature row."""
        return self.features.shape[1]

    @property
    def positions(self) -> Tensor:
        """Patch centres in patch units, [N, 2] float64, continuous: (xy + size / 2) / size.

        Raises MissingCoordinates for a bare bag.
        """
        if self.coords is None or self.patch_size_level0 is None:
            raise MissingCoordinates(
                f"{self.source or 'bag'} ({self.slide_id}): has no coordinates, which this step needs; read the "
                "features from a layout that stores them, or give --patch-size-level0 or --slide if the file has "
                "coordinates without a patch size"
            )
        return (self.coords + self.patch_size_level0 / 2) / self.patch_size_level0


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
