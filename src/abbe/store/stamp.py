"""STAMP's layout: `<extractor>-<hash>/<slide>.h5`, with coordinates in micrometres.

`feats` is [N, D] float16, `coords` [N, 2] float32, top-left. The file states unit="um" and the side of a tile in µm
(`tile_size_um`; `tile_size` before 2.1), but not the slide's mpp, so the caller must give the mpp. Files without a unit
(STAMP 1, and others that name their dataset `feats`) are read as level-0 pixels if the caller gives the patch size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from abbe.errors import BagError
from abbe.store.commit import commit
from abbe.store.h5 import open_h5, write_dataset
from abbe.store.kind import Kind
from abbe.store.parts import (
    MppMissing,
    Overrides,
    Peek,
    as_coords,
    assemble,
    needs_coords,
    number,
    resolve_patch_size,
    shape_of,
    text,
)
from abbe.types import MPP, Bag, Micrometres, Px0

NAME = "stamp"
SUFFIX = ".h5"
VERSION = 1
_WRITTEN_AS = "2.1.0"  # the first version whose attributes are those of `write`


def read(path: Path, overrides: Overrides) -> Bag:
    """A feature file, its coordinates converted to level-0 pixels.

    Raises MppMissing if the mpp is not given, BagError for another unit or features of whole slides.
    """
    with open_h5(path) as file:
        features = file.array("feats")
        coords = file.array("coords") if file.has("coords") else None
        attributes = file.attributes()
    kind, encoder = text(attributes.get("feat_type")), text(attributes.get("extractor"))
    if kind not in (None, "tile"):
        raise BagError(f"{path}: attribute 'feat_type' is {kind!r}; expected 'tile', features of patches")
    if coords is None:
        return assemble(path, features, None, None, overrides, name="feats", encoder=encoder)
    tile_um = _tile_um(path, attributes)
    if tile_um is None:
        missing = "no attribute 'unit' or 'tile_size_um', so coords must be level-0 pixels (not those of STAMP 1)"
        size = resolve_patch_size(path, None, overrides, missing=missing)
        return assemble(path, features, coords, size, overrides, name="feats", encoder=encoder)
    if overrides.mpp is None:
        raise MppMissing(
            f"{path}: coords are in micrometres (tile_size_um {tile_um:g}) and STAMP does not store the slide's mpp; "
            "give it with --override-mpp (microns per pixel at level 0) or --slide"
        )
    # float32 micrometres are exact to about a hundredth of a pixel.
    pixels = np.round(as_coords(path, coords) / overrides.mpp, 2)
    source = f"tile_size_um / mpp = {tile_um:g} / {overrides.mpp:g}"
    size = resolve_patch_size(path, _to_px0(tile_um, overrides.mpp), overrides, source=source, missing="")
    return assemble(path, features, pixels, size, overrides, name="feats", encoder=encoder)


def peek(path: Path) -> Peek:
    """(N, D, extractor)."""
    with open_h5(path) as file:
        return *shape_of(path, "feats", file.shape("feats")), text(file.attributes().get("extractor"))


def kind(path: Path) -> Kind:
    """The kind: STAMP states the side of a tile in µm and in pixels."""
    with open_h5(path) as file:
        attributes = file.attributes()
    side, encoder = _tile_um(path, attributes), text(attributes.get("extractor"))
    if side is None or "tile_size_px" not in attributes:
        return Kind(encoder)
    pixels = number(path, attributes, "tile_size_px")
    return Kind(encoder, mpp=side / pixels, patch_size=pixels)


def write(path: Path, bag: Bag, made_with: dict[str, Any] | None = None) -> None:
    """Commit a bag as STAMP does: features as float16, coordinates in micrometres.

    Raises BagError for a bag without coordinates or mpp, and for features that overflow float16.
    """
    where = bag.source or bag.slide_id
    if bag.coords is None or bag.patch_size_level0 is None:
        raise needs_coords(bag, "stamp")
    if bag.mpp is None:
        raise BagError(f"{where}: the stamp layout stores coords in micrometres; give the mpp with --override-mpp")
    with np.errstate(over="ignore"):
        features = bag.features.numpy().astype(np.float16)
    beyond = np.argwhere(~np.isfinite(features))
    if len(beyond):
        row, column = beyond[0]
        raise BagError(
            f"{where}: features[{row}, {column}] is {float(bag.features[row, column]):g}, but the stamp layout stores "
            "float16, up to 65504; write --to tensors or trident"
        )
    coords = (bag.coords.numpy() * bag.mpp).astype(np.float32)
    with (
        commit(path, format="stamp-features", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        write_dataset(file, "coords", coords)
        write_dataset(file, "feats", features)
        file.attrs["stamp_version"] = _WRITTEN_AS
        file.attrs["extractor"] = bag.encoder or ""
        file.attrs["unit"] = "um"
        file.attrs["tile_size_um"] = _to_um(bag.patch_size_level0, bag.mpp)
        file.attrs["feat_type"] = "tile"


def _to_px0(length: Micrometres, mpp: MPP) -> Px0:
    return Px0(length / mpp)


def _to_um(length: Px0, mpp: MPP) -> Micrometres:
    return Micrometres(length * mpp)


def _tile_um(path: Path, attributes: dict[str, Any]) -> Micrometres | None:
    """Side of a tile; None if the file states neither unit nor size. Raises BagError for another unit."""
    unit = text(attributes.get("unit"))
    if unit not in (None, "um"):
        raise BagError(f"{path}: attribute 'unit' is {unit!r}; expected 'um'. Extract the features again with STAMP 2")
    keys = ("tile_size_um", "tile_size") if unit == "um" else ("tile_size_um",)
    key = next((key for key in keys if key in attributes), None)
    if key is not None:
        return Micrometres(number(path, attributes, key))
    if unit == "um":
        raise BagError(f"{path}: unit is 'um' but attribute 'tile_size_um' (formerly 'tile_size') is missing")
    return None
