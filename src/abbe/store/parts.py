"""What the readers of all layouts share: what a caller may supply, HDF5 without surprises, arrays to a checked Bag."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from abbe.errors import AbbeError, BagError
from abbe.types import Bag

Peek = tuple[int, int, str | None]
"""patches, width, encoder"""
_CHUNK_ROWS = 1024
_MANY_STEPS = 8  # beyond, a step that never falls below twice the size is no accident


@dataclass(frozen=True)
class Overrides:
    """What a caller supplies for files that do not say it.

    patch_size_level0: side of a patch in level-0 pixels.   mpp: microns a pixel at level 0; it wins over the file's.
    level0_size: (width, height) in pixels.   encoder: the one wanted, where a file holds features of several.
    stride_level0: step between patches in level-0 pixels, where they overlap.
    """

    patch_size_level0: float | None = None
    mpp: float | None = None
    level0_size: tuple[int, int] | None = None
    encoder: str | None = None
    stride_level0: float | None = None


class MppMissing(BagError):
    """A file whose positions cannot be had without the mpp of its slide, which nobody has said."""


@contextmanager
def as_bag_error(path: Path) -> Iterator[None]:
    """What a damaged file makes a library raise, as a BagError: a batch records it and goes on."""
    try:
        yield
    except AbbeError:
        raise
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise BagError(f"{path}: cannot be read, it is damaged or of another layout ({said})") from error


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading. BagError for what is none."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BagError(f"{path}: cannot be opened as HDF5 ({error})") from error
    with file:
        yield file


def dataset(file: h5py.File, name: str, path: Path) -> np.ndarray:
    """All of one dataset. BagError where there is none, or it cannot be read (a checksum that fails, a torn file)."""
    if not isinstance(file.get(name), h5py.Dataset):
        raise BagError(f"{path}: no dataset {name!r} (found: {', '.join(file) or 'nothing'})")
    try:
        return np.asarray(file[name][()])
    except (OSError, RuntimeError) as error:
        raise BagError(f"{path}: dataset {name!r} cannot be read ({error})") from error


def peek_h5(path: Path, name: str) -> tuple[int, int]:
    """(N, D) of a dataset of features, without reading it. BagError as `dataset`."""
    with open_h5(path) as file:
        if not isinstance(file.get(name), h5py.Dataset):
            raise BagError(f"{path}: no dataset {name!r} (found: {', '.join(file) or 'nothing'})")
        return shape_of(path, name, tuple(file[name].shape))


def shape_of(path: Path, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(N, D) for the shape of a dataset of features; (0,) is a slide without patches, (D,) one patch."""
    if shape == (0,):
        return 0, 0
    if len(shape) == 1:
        return 1, shape[0]
    if len(shape) != 2:
        raise BagError(f"{path}: dataset {name!r} must be [N, D], its shape is {shape}")
    return shape[0], shape[1]


def text(value: Any) -> str | None:
    """An attribute as text; None for one that is absent or empty."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value) or None if value is not None else None


def chunks(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Large chunks for rows that are read together; None where there is nothing to cut."""
    rows, width = shape
    return (min(rows, _CHUNK_ROWS), width) if rows and width else None


def needs_size(path: Path, why: str) -> BagError:
    """The error for coordinates without a patch size."""
    return BagError(f"{path}: {why}; say the patch size with --patch-size-level0 (side of a patch in level-0 pixels)")


def no_place(bag: Bag, layout: str) -> BagError:
    """The error for a bag without positions where the layout has none without."""
    return BagError(
        f"{bag.source or bag.slide_id}: the {layout} layout needs coords and patch_size_level0; this bag has neither; "
        "write --to tensors"
    )


def resolve_patch_size(path: Path, stated: float | None, given: Overrides, *, said_by: str, why_none: str) -> float:
    """The patch size in level-0 pixels, from the file or the caller. BagError for none, or two that differ."""
    asked = given.patch_size_level0
    if stated is None:
        if asked is None:
            raise needs_size(path, why_none)
        return float(asked)
    if asked is not None and abs(stated - asked) > 1e-6 * stated:
        raise BagError(
            f"{path}: {said_by} is {stated:g}, --patch-size-level0 says {asked:g}; leave the option out, or mend the "
            "file"
        )
    return float(stated)


def assemble(
    path: Path,
    features: np.ndarray | torch.Tensor,
    coords: np.ndarray | None,
    size: float | None,
    given: Overrides,
    *,
    name: str = "features",
    stride: float | None = None,
    mpp: float | None = None,
    level0_size: tuple[int, int] | None = None,
    encoder: str | None = None,
) -> Bag:
    """A Bag from what a layout holds; `name` is what the file calls its features.

    features: [N, D] of a floating type (float64 and bfloat16 become float32), (0,) or (D,).   coords: [N, 2], (0,) or
    None.   stride: where the file states it; else the step is only compared with the size.

    Raises BagError naming file, dataset, row and value.
    """
    rows = _rows(path, torch.as_tensor(features), name)
    if level0_size is not None and given.level0_size not in (None, level0_size):
        raise BagError(
            f"{path}: the file says the slide has {level0_size} level-0 pixels, --level0-size says "
            f"{given.level0_size}; these features are of another slide"
        )
    if stride is not None and given.stride_level0 not in (None, stride):
        raise BagError(
            f"{path}: the file says patches step by {stride:g}, --stride-level0 says {given.stride_level0:g}"
        )
    stride = stride or given.stride_level0
    if coords is not None:
        coords = np.asarray(coords, np.float64)
        coords = coords.reshape(0, 2) if coords.size == 0 else coords
        if coords.ndim != 2 or coords.shape[1] != 2:
            raise BagError(f"{path}: dataset 'coords' must be [N, 2], its shape is {coords.shape}")
        if len(coords) != len(rows):
            raise BagError(
                f"{path}: {len(rows)} rows of {name!r}, {len(coords)} of 'coords'; lengths that differ mean a file "
                "that was cut short: extract it again"
            )
        if size is not None:
            # A size that the file states is not doubted where patches overlap; one typed in may be half or double.
            check_step(coords, size, str(path), stride=stride, may_overlap=given.patch_size_level0 is None)
    try:
        return Bag(
            rows,
            None if coords is None else torch.from_numpy(coords),
            size if coords is not None else None,
            path.stem,
            stride_level0=stride if coords is not None else None,
            mpp=mpp if given.mpp is None else given.mpp,
            level0_size=level0_size or given.level0_size,
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


def _rows(path: Path, features: torch.Tensor, name: str) -> torch.Tensor:
    shape = shape_of(path, name, tuple(features.shape))
    if features.dtype in (torch.float64, torch.bfloat16):
        features = features.float()
    if features.dtype not in (torch.float16, torch.float32):
        raise BagError(f"{path}: dataset {name!r} is {features.dtype}; expected float16, float32 or float64")
    return features.detach().cpu().reshape(shape)


def check_step(
    coords: np.ndarray, size: float, where: str, *, stride: float | None = None, may_overlap: bool = False
) -> None:
    """Refuse coordinates whose usual step along a row does not fit the patch size (both level-0 pixels).

    coords: [N, 2]. With a `stride` the step is a multiple of it; without, of the size; or a whole part of the size,
    where patches `may_overlap`. A wrong size shows here and nowhere else: everything downstream would look plausible.
    """
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    x, y = coords[order, 0], coords[order, 1]
    steps = np.diff(x)[np.diff(y) == 0]
    steps = steps[steps > 0]
    if len(steps) == 0:
        return
    values, counts = np.unique(np.round(steps), return_counts=True)
    modal = float(values[counts.argmax()])
    expected = stride or size
    hint = "" if stride is not None else ". Patches that overlap or lie apart need --stride-level0 (their step)"
    fits = _is_multiple(modal, expected) or (stride is None and may_overlap and _is_multiple(expected, modal))
    if not fits:
        raise BagError(
            f"{where}: dataset 'coords' mostly steps by {modal:g} level-0 pixels, its attributes or the options say "
            f"{expected:g}; one of the two is wrong, and positions would be too{hint}"
        )
    if len(steps) > _MANY_STEPS and steps.min() > 1.9 * expected:
        raise BagError(
            f"{where}: dataset 'coords' never steps by less than {steps.min():g} level-0 pixels, its attributes or the "
            f"options say {expected:g}: no two patches would touch. Is that the size at another magnification?{hint}"
        )


def _is_multiple(length: float, unit: float) -> bool:
    times = max(1, round(length / unit))
    return abs(length - times * unit) <= max(1.0, 0.01 * unit) * times
