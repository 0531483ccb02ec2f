"""What the readers of all layouts share: overrides, checks of stored values, and the way from arrays to a Bag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abbe.errors import BagError, ConfigError
from abbe.types import MPP, Bag, Px0

Peek = tuple[int, int, str | None]
"""patches, width, encoder"""
_SMALLEST, _LARGEST = 1e-12, 1e15  # of a stored length or ratio; beyond, arithmetic with it would overflow
_MANY_STEPS = 8  # with more steps than this, never stepping by less than twice the size is not chance
_MOST_STEPS = 1e9  # more patches side by side than any slide has


@dataclass(frozen=True)
class Overrides:
    """What the caller supplies because the files do not state it.

    patch_size_level0: side of a patch.   mpp: of level 0; replaces the file's.
    level0_size: (width, height) in level-0 pixels.   encoder: whose features to read if a file has several.
    stride_level0: step between overlapping patches.

    Raises ConfigError for a length that is not a positive number.
    """

    patch_size_level0: Px0 | None = None
    mpp: MPP | None = None
    level0_size: tuple[int, int] | None = None
    encoder: str | None = None
    stride_level0: Px0 | None = None

    def __post_init__(self) -> None:
        for name in ("patch_size_level0", "mpp", "stride_level0"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a positive number, got {value}")


class MppMissing(BagError):
    """The positions of a file depend on the mpp of its slide, and nothing states it."""


def shape_of(path: Path, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(N, D) for the shape of a dataset of features; (0,) is a slide without patches, (D,) one patch."""
    if shape == (0,):
        return 0, 0
    if len(shape) == 1:
        return 1, shape[0]
    if len(shape) != 2:
        raise BagError(f"{path}: dataset {name!r} must be [N, D], got shape {shape}")
    return shape[0], shape[1]


def text(value: Any) -> str | None:
    """An attribute as text; None if it is absent or empty."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value) or None if value is not None else None


def number(path: Path, attributes: Mapping[str, Any], key: str, *, positive: bool = True) -> float:
    """An attribute as a float. Raises BagError unless it is one finite number (greater than 0 if `positive`)."""
    value = attributes[key]
    if isinstance(value, np.generic | np.ndarray) and value.size == 1:
        value = value.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (_SMALLEST if positive else -_LARGEST) < value < _LARGEST:
        shown = f"{value:g}" if is_number and abs(value) < _LARGEST else repr(value)[:80]
        raise BagError(f"{path}: attribute {key!r} is {shown}; expected a {'positive ' * positive}number")
    return float(value)


def as_coords(path: Path, stored: np.ndarray) -> np.ndarray:
    """Stored coordinates as float64 [N, 2]. Raises BagError for another shape or what are not numbers."""
    if stored.dtype.kind not in "fiu":
        raise BagError(f"{path}: dataset 'coords' is {stored.dtype}; expected numbers")
    if stored.size == 0:
        return np.zeros((0, 2))
    if stored.ndim != 2 or stored.shape[1] != 2:
        raise BagError(f"{path}: dataset 'coords' must be [N, 2], got shape {stored.shape}")
    return stored.astype(np.float64)


def needs_coords(bag: Bag, layout: str) -> BagError:
    """The error for writing a bare bag in a layout that requires coordinates."""
    return BagError(
        f"{bag.source or bag.slide_id}: the {layout} layout needs coords and patch_size_level0; this bag has neither; "
        "write --to tensors"
    )


def resolve_patch_size(path: Path, stated: Px0 | None, overrides: Overrides, *, source: str = "", missing: str) -> Px0:
    """The patch size in level-0 pixels, from the file or the caller.

    source: where the file states it.   missing: why the file does not.

    Raises BagError if neither states it, or they differ.
    """
    given = overrides.patch_size_level0
    if stated is None:
        if given is None:
            raise BagError(
                f"{path}: {missing}; give the patch size with --patch-size-level0 (side of a patch in level-0 pixels)"
            )
        return given
    if given is not None and abs(stated - given) > 1e-6 * stated:
        raise BagError(
            f"{path}: {source} is {stated:g}, but --patch-size-level0 is {given:g}; omit the option or correct the file"
        )
    return stated


def assemble(
    path: Path,
    features: np.ndarray | torch.Tensor,
    coords: np.ndarray | None,
    size: Px0 | None,
    overrides: Overrides,
    *,
    name: str = "features",
    stride: Px0 | None = None,
    mpp: MPP | None = None,
    level0_size: tuple[int, int] | None = None,
    encoder: str | None = None,
) -> Bag:
    """A Bag from what a layout stores.

    features: [N, D] of a floating type (float64 and bfloat16 become float32), (0,) or (D,).   coords: [N, 2], (0,) or
    None.   name: of the features in the file.   stride: only if the file states it.

    Raises BagError naming file, dataset, row and value.
    """
    rows = as_rows(path, features, name)
    if level0_size is not None and overrides.level0_size not in (None, level0_size):
        raise BagError(
            f"{path}: the file states a slide of {level0_size} level-0 pixels, but --level0-size is "
            f"{overrides.level0_size}; these features are of another slide"
        )
    if stride is not None and overrides.stride_level0 not in (None, stride):
        raise BagError(
            f"{path}: the file states a step of {stride:g} level-0 pixels between patches, but --stride-level0 is "
            f"{overrides.stride_level0:g}"
        )
    stride = stride or overrides.stride_level0
    if coords is not None:
        coords = as_coords(path, coords)
        if len(coords) != len(rows):
            raise BagError(
                f"{path}: {len(rows)} rows of {name!r} but {len(coords)} of 'coords'; the file is incomplete; extract "
                "it again"
            )
    try:
        bag = Bag(
            rows,
            None if coords is None else torch.from_numpy(coords),
            size if coords is not None else None,
            path.stem,
            stride_level0=stride if coords is not None else None,
            mpp=mpp if overrides.mpp is None else overrides.mpp,
            level0_size=level0_size or overrides.level0_size,
            encoder=encoder,
            source=str(path),
        )
    except BagError as error:
        if rows.dtype == torch.float16 and bool(torch.isinf(rows).any()):
            raise BagError(
                f"{error}. {name!r} is float16, whose largest value is 65504: it overflowed when it was written; "
                "extract it again as float32"
            ) from error
        raise
    if coords is not None and size is not None:
        # A size stated by the file may exceed the step of overlapping patches; one from the user may be a typo.
        _check_step(coords, size, path, stride=stride, may_overlap=overrides.patch_size_level0 is None)
    return bag


def as_rows(path: Path, features: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Stored features as float32 or float16 [N, D]. Raises BagError for another type or shape."""
    native = not isinstance(features, np.ndarray) or features.dtype in (np.float16, np.float32, np.float64)
    rows = torch.as_tensor(features).detach() if native else None
    if rows is not None and rows.dtype in (torch.float64, torch.bfloat16):
        rows = rows.float()
    if rows is None or rows.dtype not in (torch.float16, torch.float32):
        raise BagError(f"{path}: dataset {name!r} is {features.dtype}; expected float16, float32 or float64")
    return rows.reshape(shape_of(path, name, tuple(rows.shape)))


def _check_step(coords: np.ndarray, size: Px0, path: Path, *, stride: Px0 | None, may_overlap: bool) -> None:
    """Raise BagError if the most frequent step along a row does not fit the patch size (both in level-0 pixels).

    coords: [N, 2]. The step must be a multiple of `stride`, or of the size if there is none; or divide the size if
    patches `may_overlap`. This is the only check that finds a wrong size: later results would look plausible.
    """
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    x, y = coords[order, 0], coords[order, 1]
    steps = np.diff(x)[np.diff(y) == 0]
    if len(steps) == 0:
        return
    values, counts = np.unique(np.round(steps), return_counts=True)
    modal = float(values[counts.argmax()])
    expected = stride or size
    hint = "" if stride is not None else ". For patches that overlap or have gaps, give their step with --stride-level0"
    fits = _is_multiple(modal, expected)
    if stride is None and may_overlap and modal > 0:
        fits = fits or _is_multiple(expected, modal)
    if not fits:
        raise BagError(
            f"{path}: dataset 'coords' mostly steps by {modal:g} level-0 pixels, but the file or the options state "
            f"{expected:g}; one of them is wrong, and positions would be wrong too{hint}"
        )
    if len(steps) > _MANY_STEPS and steps.min() > 1.9 * expected:
        raise BagError(
            f"{path}: dataset 'coords' never steps by less than {steps.min():g} level-0 pixels, but the file or the "
            f"options state {expected:g}: no two patches would touch. Is that the size at another magnification?{hint}"
        )


def _is_multiple(length: float, unit: float) -> bool:
    if length / unit > _MOST_STEPS:
        return False
    times = max(1, round(length / unit))
    return abs(length - times * unit) <= max(1.0, 0.01 * unit) * times
