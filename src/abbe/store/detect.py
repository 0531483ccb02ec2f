"""Which layout a file is of, told from its content."""

from __future__ import annotations

from pathlib import Path

import h5py

from abbe.errors import BagError
from abbe.store import clam, saved, slidechat
from abbe.store.parts import as_bag_error, open_h5

H5 = (".h5", ".hdf5")
SUFFIXES = (*H5, ".pt", ".pth", ".npy", ".safetensors", ".csv")
ZARR = ".zarr"
NO_SUCH = "no such file"


def layout_of(path: str | Path) -> str:
    """The layout of a feature file, one of `abbe.store.bags.LAYOUTS`.

    Raises BagError for a file of no layout, saying what was found, and for one that is no feature file at all.
    """
    path = Path(path)
    exists(path)
    with as_bag_error(path):
        return _told(path)


def _told(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ZARR:
        return "wsidata"
    if suffix in H5:
        return _of_h5(path)
    if suffix == ".csv":
        if slidechat.is_one(path):
            return "slidechat"
        raise BagError(f"{path}: a table, and not one of features: SlideChat's have {slidechat.WIDTH} columns or more")
    if suffix in (".pt", ".pth"):
        return _of_pt(path)
    if suffix == ".safetensors" and "abbe" in saved.safetensors_header(path)[1]:
        raise BagError(f"{path}: tokens, which `abbe condense` wrote; not a bag of patch features")
    if suffix in saved.SUFFIXES:
        return "tensors"
    raise BagError(f"{path}: no feature file by its suffix; expected one of {', '.join((*SUFFIXES, ZARR))}")


def exists(path: Path) -> None:
    """BagError where there is nothing to read under `path`, or a folder that is no .zarr store."""
    if path.suffix.lower() == ZARR and path.is_dir():
        return
    if path.is_dir():
        raise BagError(f"{path}: a folder; name a feature file, or a .zarr store")
    if not path.is_file():
        raise BagError(f"{path}: {NO_SUCH}")


def is_patches(path: Path) -> bool:
    """Whether an h5 file is the patches of a slide without its features, as CLAM and TRIDENT keep them."""
    if path.suffix.lower() not in H5:
        return False
    with open_h5(path) as file:
        return "coords" in file and not {"features", "feats"} & set(file)


def _of_h5(path: Path) -> str:
    with open_h5(path) as file:
        if isinstance(file.get("feats"), h5py.Dataset):
            return "stamp"
        if not isinstance(file.get("features"), h5py.Dataset):
            only = "coords" in file
            what = "patches without features; name the feature file. It has " if only else ""
            raise BagError(f"{path}: {what}no dataset 'features' or 'feats' (found: {', '.join(file) or 'nothing'})")
        said = dict(file["features"].attrs) | (dict(file["coords"].attrs) if "coords" in file else {})
        if said or "coords" not in file:
            return "trident"
    beside = clam.find_patches(path)
    # TRIDENT's own patches are called <slide>_patches.h5; without either file the layouts are one.
    return "clam" if beside is not None else "trident"


def _of_pt(path: Path) -> str:
    value = saved.load_pt(path)
    if isinstance(value, dict):
        return "gigapath"
    if path.suffix.lower() == ".pt" and clam.find_patches(path) is not None:
        return "clam"
    return "tensors"
