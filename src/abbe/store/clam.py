"""CLAM's layout: features in one folder, their geometry only in the patches file they were extracted from.

    <out>/patches/<slide>.h5     coords [N, 2] int32, top-left, level-0 pixels; the geometry in its attributes
    <out>/h5_files/<slide>.h5    features [N, D] float32, coords [N, 2] int32; no attributes
    <out>/pt_files/<slide>.pt    the features alone, in the same order

The level-0 size of a patch is patch_size × downsample of its level (× custom_downsample if present). The oldest patches
files also store the images (`imgs`), with coordinates in pixels of the level that was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from abbe.errors import BagError
from abbe.store.commit import commit
from abbe.store.h5 import open_h5, write_dataset
from abbe.store.kind import Kind
from abbe.store.parts import Overrides, Peek, as_coords, assemble, needs_coords, number, resolve_patch_size, shape_of
from abbe.store.saved import peek_tensor, saved_tensor
from abbe.types import Bag, Px0

NAME = "clam"
SUFFIX = ".h5"
VERSION = 1


@dataclass(frozen=True)
class Patches:
    """Content of a patches file: coords [N, 2] as stored, and in level-0 pixels; sizes in level-0 pixels."""

    path: Path
    stored: np.ndarray
    coords: np.ndarray
    patch_size_level0: Px0
    level0_size: tuple[int, int] | None


def find_patches(path: Path) -> Path | None:
    """The patches file of a feature file: in `patches/` beside its folder, one folder up, or beside the file."""
    name = f"{path.stem}.h5"
    for folder in (path.parent.parent, path.parent.parent.parent, path.parent):
        found = folder / "patches" / name
        if found.is_file() and found != path:
            return found
    return None


def read(path: Path, overrides: Overrides) -> Bag:
    """A feature file (.h5 or .pt) with the geometry of its patches file.

    Raises BagError if there is no patches file and nothing else gives the size, or the two files do not match.
    """
    beside = find_patches(path)
    patches = read_patches(beside) if beside is not None else None
    features: np.ndarray | torch.Tensor
    coords: np.ndarray | None = None
    if path.suffix.lower() == ".pt":
        features = saved_tensor(path)
    else:
        with open_h5(path) as file:
            features, coords = file.array("features"), as_coords(path, file.array("coords"))
    if patches is None:
        expected = path.parent.parent / "patches" / f"{path.stem}.h5"
        if coords is None:
            raise BagError(
                f"{path}: a tensor without coordinates, and no patches file {expected}; put it there, or read the "
                "tensor without positions: --layout tensors"
            )
        missing = f"CLAM stores the patch size in {expected}, which does not exist"
        size = resolve_patch_size(path, None, overrides, missing=missing)
        return assemble(path, features, coords, size, overrides)
    if coords is not None and not np.array_equal(coords, patches.stored):
        raise BagError(
            f"{path}: its {len(coords)} coords are not the {len(patches.stored)} of {patches.path}; the patches were "
            "created again, so extract the features again"
        )
    source = f"patch_size × downsample in {patches.path}"
    size = resolve_patch_size(path, patches.patch_size_level0, overrides, source=source, missing="")
    return assemble(path, features, patches.coords, size, overrides, level0_size=patches.level0_size)


def read_patches(path: Path) -> Patches:
    """A patches file, recent (`coords` only) or of the oldest kind (`imgs` and `coords`).

    Raises BagError naming the attribute that is missing or not a number.
    """
    with open_h5(path) as file:
        stored = as_coords(path, file.array("coords"))
        has_images = "imgs" in file.names
        attributes = file.attributes("imgs" if has_images else "coords")
        shape = file.shape("imgs") if has_images else ()
    image = shape[1] if len(shape) > 2 else None
    needed = ("patch_level", "downsample") if image else ("patch_size", "patch_level", "downsample")
    absent = [key for key in needed if key not in attributes]
    if absent:
        raise BagError(
            f"{path}: dataset {'imgs' if image else 'coords'!r} lacks the attributes {', '.join(absent)}, so this is "
            "not a patches file of CLAM; --layout trident --patch-size-level0 reads level-0 pixels without one"
        )
    downsample, across = _pair(path, attributes, "downsample")
    if abs(downsample - across) > 0.01 * downsample:
        raise BagError(f"{path}: attribute 'downsample' is ({downsample:g}, {across:g}); expected two equal numbers")
    # Images may have been shrunk once more after reading, by the attribute or the ratio of the two sizes of the level.
    custom = number(path, attributes, "custom_downsample") if "custom_downsample" in attributes else 1.0
    if "custom_downsample" not in attributes and {"level_dim", "downsampled_level_dim"} <= set(attributes):
        width, downsampled = (_pair(path, attributes, key)[0] for key in ("level_dim", "downsampled_level_dim"))
        custom = max(1.0, round(width / downsampled))
    coords = stored * (downsample * custom if image else 1.0)
    size = Px0((image or number(path, attributes, "patch_size")) * downsample * custom)
    return Patches(path, stored, coords, size, _level0_size(path, attributes, downsample))


def peek(path: Path) -> Peek:
    """(N, D, None): CLAM does not name its encoder."""
    if path.suffix.lower() == ".pt":
        return *shape_of(path, "tensor", peek_tensor(path)), None
    with open_h5(path) as file:
        return *shape_of(path, "features", file.shape("features")), None


def kind(path: Path) -> Kind:
    """The level-0 size of a patch; CLAM states neither mpp nor encoder."""
    patches = find_patches(path)
    return Kind(patch_size_level0=None if patches is None else read_patches(patches).patch_size_level0)


def write(path: Path, bag: Bag, made_with: dict[str, Any] | None = None) -> None:
    """Commit features under `path`, and their geometry under `patches/`: beside `h5_files/`, else beside the file.

    Raises BagError for a bag without coordinates, or with coordinates or a patch size that are not whole pixels.
    """
    if bag.coords is None or bag.patch_size_level0 is None:
        raise needs_coords(bag, "clam")
    where, coords = bag.source or bag.slide_id, bag.coords.numpy()
    bad = ((coords != np.round(coords)) | (coords > np.iinfo(np.int32).max)).any(1)
    if bad.any():
        row = int(bad.argmax())
        raise BagError(
            f"{where}: coords[{row}] = {coords[row].tolist()} does not fit int32, the type of the clam layout; "
            "write --to tensors or trident"
        )
    if not float(bag.patch_size_level0).is_integer():
        raise BagError(
            f"{where}: patch_size_level0 is {bag.patch_size_level0}, but the clam layout stores whole pixels; write "
            "--to tensors or trident"
        )
    whole = coords.astype(np.int32)
    beside = patches_path(path)
    with (
        commit(beside, format="clam-patches", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        write_dataset(file, "coords", whole).attrs.update(_attributes(bag, beside))
    with (
        commit(path, format="clam-features", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        write_dataset(file, "features", bag.features.float().numpy())
        write_dataset(file, "coords", whole)


def patches_path(path: Path) -> Path:
    """The path at which `write` puts the geometry of a feature file."""
    folder = path.parent.parent if path.parent.name == "h5_files" else path.parent
    return folder / "patches" / f"{path.stem}.h5"


def _pair(path: Path, attributes: dict[str, Any], key: str) -> tuple[float, float]:
    """An attribute of one or two positive numbers, as two."""
    values = np.ravel(attributes[key])
    if len(values) not in (1, 2):
        raise BagError(f"{path}: attribute {key!r} is {str(attributes[key])[:80]!r}; expected two numbers")
    return number(path, {key: values[0]}, key), number(path, {key: values[-1]}, key)


def _level0_size(path: Path, attributes: dict[str, Any], downsample: float) -> tuple[int, int] | None:
    """The size of the slide, which is exact only if the patches are of level 0."""
    level = number(path, attributes, "patch_level", positive=False)
    if "level_dim" not in attributes or downsample != 1 or level != 0:
        return None
    width, height = _pair(path, attributes, "level_dim")
    return int(width), int(height)


def _attributes(bag: Bag, path: Path) -> dict[str, Any]:
    """CLAM's attributes for patches of level 0; without a slide size there is no level_dim."""
    assert bag.patch_size_level0 is not None
    known = {"downsampled_level_dim": bag.level0_size, "level_dim": bag.level0_size} if bag.level0_size else {}
    return {
        "patch_size": round(bag.patch_size_level0),
        "patch_level": 0,
        "downsample": (1.0, 1.0),
        **known,
        "name": bag.slide_id,
        "save_path": str(path.parent.name),
    }
