"""STAMP's layout: `<extractor>-<hash>/<slide>.h5`, with coordinates in micrometres.

`feats` is [N, D] float16, `coords` [N, 2] float32, top-left. The file says unit="um" and the side of a tile in µm
(`tile_size_um`; `tile_size` before 2.1), but not the slide's mpp, so what a micrometre is in pixels must be supplied.
Files without a unit (STAMP 1, and others who name their dataset `feats`) are read only as level-0 pixels, and only
where the caller says the patch size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from abbe.errors import BagError
from abbe.store.commit import commit
from abbe.store.parts import (
    MppMissing,
    Overrides,
    Peek,
    assemble,
    chunks,
    dataset,
    no_place,
    open_h5,
    peek_h5,
    resolve_patch_size,
    text,
)
from abbe.types import Bag

NAME = "stamp"
SUFFIX = ".h5"
VERSION = 1
_WRITTEN_AS = "2.1.0"  # the first version whose attributes are those of `write`


def read(path: Path, given: Overrides) -> Bag:
    """A feature file, in level-0 pixels.

    Raises BagError where the mpp is missing, the unit is another one, or the features are those of whole slides.
    """
    with open_h5(path) as file:
        features = dataset(file, "feats", path)
        coords = dataset(file, "coords", path) if "coords" in file else None
        attributes = dict(file.attrs)
    kind, encoder = text(attributes.get("feat_type")), text(attributes.get("extractor"))
    if kind not in (None, "tile"):
        raise BagError(f"{path}: attribute 'feat_type' is {kind!r}: features of a {kind}, not of its patches")
    if coords is None:
        return assemble(path, features, None, None, given, name="feats", encoder=encoder)
    tile_um = _tile_um(path, attributes)
    if tile_um is None:
        why = "no attribute 'unit' or 'tile_size_um': only level-0 pixels can be read so, and STAMP 1 wrote others"
        size = resolve_patch_size(path, None, given, said_by="", why_none=why)
        return assemble(path, features, coords, size, given, name="feats", encoder=encoder)
    if given.mpp is None:
        raise MppMissing(
            f"{path}: coords are in micrometres (tile_size_um {tile_um:g}) and STAMP does not store the slide's mpp; "
            "say it with --override-mpp (microns a pixel at level 0), or --slide"
        )
    # float32 micrometres lose the last digits: a hundredth of a pixel is all that can be had back.
    pixels = np.round(coords.astype(np.float64) / given.mpp, 2)
    said_by = f"tile_size_um / mpp = {tile_um:g} / {given.mpp:g}"
    size = resolve_patch_size(path, tile_um / given.mpp, given, said_by=said_by, why_none="")
    return assemble(path, features, pixels, size, given, name="feats", encoder=encoder)


def peek(path: Path) -> Peek:
    """(N, D, extractor)."""
    n, width = peek_h5(path, "feats")
    with open_h5(path) as file:
        return n, width, text(file.attrs.get("extractor"))


def write(path: Path, bag: Bag, made_with: dict[str, Any] | None = None) -> None:
    """Commit a bag as STAMP would: features as float16, coordinates in micrometres.

    Raises BagError for a bag without coordinates or mpp, and for features beyond float16.
    """
    where = bag.source or bag.slide_id
    if bag.coords is None or bag.patch_size_level0 is None:
        raise no_place(bag, "stamp")
    if bag.mpp is None:
        raise BagError(f"{where}: the stamp layout has its coords in micrometres; say the mpp with --override-mpp")
    with np.errstate(over="ignore"):
        features = bag.features.numpy().astype(np.float16)
    beyond = np.argwhere(~np.isfinite(features))
    if len(beyond):
        row, column = beyond[0]
        raise BagError(
            f"{where}: features[{row}, {column}] is {float(bag.features[row, column]):g}, beyond the 65504 of float16, "
            "which is all the stamp layout holds; write --to tensors or trident"
        )
    coords = (bag.coords.numpy() * bag.mpp).astype(np.float32)
    with (
        commit(path, format="stamp-features", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        for name, data in (("coords", coords), ("feats", features)):
            cut = chunks(data.shape)
            file.create_dataset(name, data=data, chunks=cut, fletcher32=cut is not None)
        file.attrs["stamp_version"] = _WRITTEN_AS
        file.attrs["extractor"] = bag.encoder or ""
        file.attrs["unit"] = "um"
        file.attrs["tile_size_um"] = bag.patch_size_level0 * bag.mpp
        file.attrs["feat_type"] = "tile"


def _tile_um(path: Path, attributes: dict[str, Any]) -> float | None:
    """Side of a tile in micrometres; None where the file says nothing about units. BagError for another unit."""
    unit = text(attributes.get("unit"))
    if unit not in (None, "um"):
        raise BagError(
            f"{path}: attribute 'unit' is {unit!r}; only 'um' is known. Extract the features again with STAMP 2"
        )
    size = attributes.get("tile_size_um")
    if size is None and unit == "um":
        size = attributes.get("tile_size")
    if size is None:
        if unit == "um":
            raise BagError(f"{path}: unit is 'um' and there is no attribute 'tile_size_um' (nor the older 'tile_size')")
        return None
    if not 0 < float(size) < float("inf"):
        raise BagError(f"{path}: attribute 'tile_size_um' is {float(size):g}; expected a positive number")
    return float(size)
