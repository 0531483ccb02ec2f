"""CLAM's layout: features in one folder, and the geometry only in the file of patches they were made from.

    <out>/patches/<slide>.h5     coords [N, 2] int32, top-left, level-0 pixels; the geometry in its attributes
    <out>/h5_files/<slide>.h5    features [N, D] float32, coords [N, 2] int32; no attributes
    <out>/pt_files/<slide>.pt    the features alone, in the same order

The level-0 size of a patch is patch_size × downsample of its level (× custom_downsample in files that have it). The
oldest files keep the images too (`imgs`), and their coordinates are pixels of the level they were read at.
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
from abbe.store.parts import (
    Overrides,
    Peek,
    assemble,
    chunks,
    dataset,
    no_place,
    open_h5,
    peek_h5,
    resolve_patch_size,
    shape_of,
)
from abbe.store.saved import peek_tensor, saved_tensor
from abbe.types import Bag

NAME = "clam"
SUFFIX = ".h5"
VERSION = 1


@dataclass(frozen=True)
class Patches:
    """What a file of patches says: coords [N, 2] as stored, and in level-0 pixels; sizes in level-0 pixels."""

    path: Path
    stored: np.ndarray
    coords: np.ndarray
    patch_size_level0: float
    level0_size: tuple[int, int] | None


def find_patches(path: Path) -> Path | None:
    """The file of patches of a feature file: in `patches/` beside its folder, one folder up, or beside itself."""
    name = f"{path.stem}.h5"
    for folder in (path.parent.parent, path.parent.parent.parent, path.parent):
        found = folder / "patches" / name
        if found.is_file() and found != path:
            return found
    return None


def read(path: Path, given: Overrides) -> Bag:
    """A feature file (.h5, or a bare .pt) with the geometry of its file of patches.

    Raises BagError where there is no such file and nothing else gives the size, or the two do not belong together.
    """
    beside = find_patches(path)
    patches = read_patches(beside) if beside is not None else None
    features: np.ndarray | torch.Tensor
    coords: np.ndarray | None = None
    if path.suffix.lower() == ".pt":
        features = saved_tensor(path)
    else:
        with open_h5(path) as file:
            features, coords = dataset(file, "features", path), dataset(file, "coords", path)
    if patches is None:
        where = path.parent.parent / "patches" / f"{path.stem}.h5"
        if coords is None:
            raise BagError(
                f"{path}: a bare tensor, and no file of patches in {where}; put it there, or read the tensor without "
                "positions: --layout tensors"
            )
        size = resolve_patch_size(
            path, None, given, said_by="", why_none=f"CLAM keeps the patch size in {where}, which is absent"
        )
        return assemble(path, features, coords, size, given)
    if coords is not None and not _same(coords, patches.stored):
        raise BagError(
            f"{path}: its {len(coords)} coords are not the {len(patches.stored)} of {patches.path}; the patches were "
            "cut again since, so extract the features again"
        )
    said_by = f"patch_size × downsample in {patches.path}"
    size = resolve_patch_size(path, patches.patch_size_level0, given, said_by=said_by, why_none="")
    return assemble(path, features, patches.coords, size, given, level0_size=patches.level0_size)


def read_patches(path: Path) -> Patches:
    """A file of patches, of the recent kind (`coords` alone) or the oldest (`imgs` and `coords`).

    Raises BagError naming the attribute that is missing.
    """
    with open_h5(path) as file:
        stored = dataset(file, "coords", path).reshape(-1, 2)
        holder = file["imgs"] if "imgs" in file else file["coords"]
        attributes = dict(holder.attrs)
        image = int(holder.shape[1]) if "imgs" in file and len(holder.shape) > 2 else None
    needed = ("patch_level", "downsample") if image else ("patch_size", "patch_level", "downsample")
    missing = [key for key in needed if key not in attributes]
    if missing:
        raise BagError(
            f"{path}: dataset {'imgs' if image else 'coords'!r} lacks the attributes {', '.join(missing)}; not a "
            "file of patches as CLAM writes it. --layout trident --patch-size-level0 reads level-0 pixels without it"
        )
    downsample = _downsample(path, attributes)
    # Where the images were shrunk once more on the way, the attribute or the two sizes of the level say by how much.
    custom = float(attributes.get("custom_downsample", 1))
    if "custom_downsample" not in attributes and {"level_dim", "downsampled_level_dim"} <= set(attributes):
        custom = max(1.0, round(float(attributes["level_dim"][0]) / float(attributes["downsampled_level_dim"][0])))
    coords = stored * (downsample * custom if image else 1.0)
    size = float(image or attributes["patch_size"]) * downsample * custom
    return Patches(path, stored, coords, size, _level0_size(attributes, downsample))


def peek(path: Path) -> Peek:
    """(N, D, None): CLAM does not name its encoder."""
    n, width = (
        shape_of(path, "tensor", peek_tensor(path)) if path.suffix.lower() == ".pt" else peek_h5(path, "features")
    )
    return n, width, None


def write(path: Path, bag: Bag, made_with: dict[str, Any] | None = None) -> None:
    """Commit features under `path`, and their geometry under `patches/`: beside `h5_files/`, else beside the file.

    Raises BagError for a bag without coordinates, with coordinates that are no int32, or with a slide size unknown.
    """
    if bag.coords is None or bag.patch_size_level0 is None:
        raise no_place(bag, "clam")
    coords = bag.coords.numpy()
    fits = np.array_equal(coords, np.round(coords)) and (not coords.size or coords.max() <= np.iinfo(np.int32).max)
    if not fits:
        row = int(np.flatnonzero((coords != np.round(coords)).any(1) | (coords > np.iinfo(np.int32).max).any(1))[0])
        raise BagError(
            f"{bag.source or bag.slide_id}: coords[{row}] = {coords[row].tolist()} is no int32, which is all the clam "
            "layout holds; write --to tensors or trident"
        )
    if bag.patch_size_level0 != round(bag.patch_size_level0):
        raise BagError(
            f"{bag.source or bag.slide_id}: patch_size_level0 is {bag.patch_size_level0}, and the clam layout holds "
            "whole pixels at level 0; write --to tensors or trident"
        )
    whole = coords.astype(np.int32)
    beside = patches_path(path)
    with (
        commit(beside, format="clam-patches", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        _coords(file, whole, _attributes(bag, beside))
    with (
        commit(path, format="clam-features", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        data = bag.features.float().numpy()
        cut = chunks(data.shape)
        file.create_dataset("features", data=data, chunks=cut, fletcher32=cut is not None)
        _coords(file, whole, {})


def patches_path(path: Path) -> Path:
    """Where `write` puts the geometry of a feature file."""
    folder = path.parent.parent if path.parent.name == "h5_files" else path.parent
    return folder / "patches" / f"{path.stem}.h5"


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.size == other.size and np.array_equal(one.reshape(-1, 2), other)


def _downsample(path: Path, attributes: dict[str, Any]) -> float:
    x, y = (float(value) for value in np.broadcast_to(np.asarray(attributes["downsample"], float), (2,)))
    if not 0 < x < np.inf or abs(x - y) > 0.01 * x:
        raise BagError(f"{path}: attribute 'downsample' is ({x:g}, {y:g}); expected one positive number for both axes")
    return x


def _level0_size(attributes: dict[str, Any], downsample: float) -> tuple[int, int] | None:
    """Known to the pixel only where the patches are of level 0 itself."""
    if "level_dim" not in attributes or downsample != 1 or int(attributes["patch_level"]) != 0:
        return None
    width, height = attributes["level_dim"]
    return int(width), int(height)


def _coords(file: h5py.File, coords: np.ndarray, attributes: dict[str, Any]) -> None:
    cut = chunks(coords.shape)
    made = file.create_dataset("coords", data=coords, chunks=cut, fletcher32=cut is not None)
    for key, value in attributes.items():
        made.attrs[key] = value


def _attributes(bag: Bag, path: Path) -> dict[str, Any]:
    """Patches of level 0, as CLAM describes them; without a slide size there is no level_dim."""
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
