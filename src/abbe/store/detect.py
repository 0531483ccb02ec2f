"""Which layout a file has, from its content."""

from __future__ import annotations

from pathlib import Path

from abbe.errors import BagError
from abbe.store import clam, h5, saved, slidechat

SUFFIXES = (*h5.SUFFIXES, ".pt", ".pth", ".npy", ".safetensors", ".csv")
ZARR = ".zarr"


def layout_of(path: str | Path) -> str:
    """The layout of a feature file, one of `abbe.store.bags.LAYOUTS`.

    Raises BagError naming what was found in a file that has no layout or is not a feature file.
    """
    path = Path(path)
    check_exists(path)
    suffix = path.suffix.lower()
    if suffix == ZARR:
        return "wsidata"
    if suffix in h5.SUFFIXES:
        return _of_h5(path)
    if suffix == ".csv":
        if slidechat.is_slidechat(path):
            return slidechat.NAME
        raise BagError(f"{path}: a table, but not of features: SlideChat's have at least {slidechat.WIDTH} columns")
    if suffix in (".pt", ".pth"):
        return _of_pt(path)
    if suffix == ".safetensors" and "abbe" in saved.safetensors_header(path)[1]:
        raise BagError(f"{path}: tokens written by `abbe condense`, not a bag of patch features")
    if suffix in saved.SUFFIXES:
        return "tensors"
    raise BagError(f"{path}: not the suffix of a feature file; expected one of {', '.join((*SUFFIXES, ZARR))}")


def check_exists(path: Path) -> None:
    """Raise BagError unless `path` is a file or a .zarr store."""
    if path.is_dir():
        if path.suffix.lower() != ZARR:
            raise BagError(f"{path}: a folder; name a feature file or a .zarr store")
    elif not path.is_file():
        raise BagError(f"{path}: no such file")


def is_patches(path: Path) -> bool:
    """Whether an h5 file has the patches of a slide without features, as CLAM and TRIDENT write them."""
    if path.suffix.lower() not in h5.SUFFIXES:
        return False
    with h5.open_h5(path) as file:
        return "coords" in file.names and not {"features", "feats"} & set(file.names)


def _of_h5(path: Path) -> str:
    with h5.open_h5(path) as file:
        if file.has("feats"):
            return "stamp"
        if not file.has("features"):
            patches = "patches without features; name the feature file. It has " if "coords" in file.names else ""
            found = ", ".join(file.names) or "nothing"
            raise BagError(f"{path}: {patches}no dataset 'features' or 'feats' (found: {found})")
        if "coords" not in file.names or file.attributes("features") or file.attributes("coords"):
            return "trident"
    # TRIDENT's own patches file is <slide>_patches.h5; without a patches file the two layouts are the same.
    return "trident" if clam.find_patches(path) is None else clam.NAME


def _of_pt(path: Path) -> str:
    value = saved.load_pt(path)
    if isinstance(value, dict):
        return "gigapath"
    if path.suffix.lower() == ".pt" and clam.find_patches(path) is not None:
        return clam.NAME
    return "tensors"
