"""LazySlide's layout, as wsidata writes it: `<slide>.zarr`, a SpatialData store.

    tables/<model>_tiles/X       features [N, D]; obs/tile_id says which tile a row is of
    shapes/tiles/shapes.parquet  tile_id and the polygon of each tile (WKB), level-0 pixels
    attributes of the root       tile_spec (sizes of the tiles), slide_properties (mpp, shape)

A tile's place is the corner of its polygon nearest the origin, and its polygon is as large as the patch was. Needs the
extra `wsidata` (zarr, and nothing else of theirs).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from abbe.errors import BagError
from abbe.store.aliases import same_encoder
from abbe.store.parts import Overrides, Peek, assemble, resolve_patch_size, shape_of
from abbe.types import Bag

NAME = "wsidata"
_REGION = "tiles"
_POINT = np.dtype("<f8")


def read(path: Path, given: Overrides) -> Bag:
    """The features of one encoder; where the store holds several, the one `given` names.

    Raises BagError naming the tables there are, or the tile without a shape.
    """
    root = _open(path)
    table, encoder = _table(path, root, given.encoder)
    region = str(table.attrs.get("region", _REGION))
    key = str(table.attrs.get("instance_key", "tile_id"))
    if f"obs/{key}" not in table:
        raise BagError(f"{path}: table {table.path!r} has no obs/{key}: nothing says which tile a row is of")
    features = np.asarray(table["X"][...])
    wanted = np.asarray(table[f"obs/{key}"][...])
    tiles, low, sides = _shapes(path, region, key)
    order = np.argsort(tiles)
    at = np.searchsorted(tiles[order], wanted).clip(0, max(0, len(tiles) - 1))
    missing = np.flatnonzero(tiles[order][at] != wanted) if len(tiles) else np.arange(len(wanted))
    if len(missing):
        row = int(missing[0])
        raise BagError(
            f"{path}: row {row} of {table.path!r} is of tile {wanted[row]}, which has no shape in {region!r}"
        )
    rows = order[at]
    spec = dict(root.attrs.get("tile_spec", {})).get(region) or {}
    slide = dict(root.attrs.get("slide_properties", {}))
    shape = slide.get("shape")
    size = resolve_patch_size(
        path,
        _size(path, sides[rows], spec, region),
        given,
        said_by=f"tile_spec[{region!r}]",
        why_none=f"no tile_spec for {region!r}, and no tiles",
    )
    return assemble(
        path,
        features,
        low[rows],
        size,
        given,
        name=f"{table.path}/X",
        stride=_at_level0(spec, "stride_width"),
        mpp=float(slide["mpp"]) if slide.get("mpp") else None,
        level0_size=(int(shape[1]), int(shape[0])) if shape else None,
        encoder=encoder,
    )


def peek(path: Path, encoder: str | None = None) -> Peek:
    """(N, D, encoder), without reading an array."""
    table, name = _table(path, _open(path), encoder)
    return *shape_of(path, f"{table.path}/X", tuple(table["X"].shape)), name


def _open(path: Path) -> Any:
    try:
        zarr = importlib.import_module("zarr")
    except ImportError as error:
        raise BagError(f"{path}: reading a .zarr store needs the extra: pip install 'abbe[wsidata]'") from error
    try:
        return zarr.open_group(path, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise BagError(f"{path}: cannot be opened as a zarr group ({error})") from error


def _table(path: Path, root: Any, encoder: str | None) -> tuple[Any, str]:
    """(table, its encoder's name): tables of features are those with an X whose rows are tiles."""
    tables = dict(root["tables"].groups()) if "tables" in root else {}
    found = {
        _encoder(name, str(table.attrs.get("region", _REGION))): table
        for name, table in tables.items()
        if "X" in table and getattr(table["X"], "ndim", 0) == 2 and "obs/tile_id" in table
    }
    if encoder is not None:
        found = {name: table for name, table in found.items() if same_encoder(name, encoder)} or found
    if len(found) == 1:
        return next(iter(found.items()))[::-1]
    if not found:
        raise BagError(f"{path}: no table of tile features in it (tables: {', '.join(sorted(tables)) or 'none'})")
    raise BagError(f"{path}: features of {len(found)} encoders ({', '.join(sorted(found))}); say which with --encoder")


def _encoder(name: str, region: str) -> str:
    return name.removesuffix(f"_{region}")


def _shapes(path: Path, region: str, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids [M], corners nearest the origin [M, 2], longer sides [M]) of the tiles."""
    place = path / "shapes" / region / "shapes.parquet"
    if not place.is_file():
        raise BagError(f"{path}: no {place.relative_to(path)}: the tiles of the features are not in the store")
    try:
        table = pq.read_table(place)
        polygons = [_points(value) for value in table.column("geometry").to_pylist()]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise BagError(f"{place}: not the polygons of tiles ({error})") from error
    ids = table.column(key).to_numpy() if key in table.column_names else np.arange(table.num_rows)
    low = np.array([points.min(0) for points in polygons]).reshape(-1, 2)
    high = np.array([points.max(0) for points in polygons]).reshape(-1, 2)
    return np.asarray(ids), low, (high - low).max(1) if len(low) else np.zeros(0)


def _points(wkb: bytes) -> np.ndarray:
    """The outer ring of a polygon in well-known binary, [points, 2]. ValueError for anything else."""
    head = np.dtype("<u4" if wkb[0] else ">u4")
    kind, rings, points = np.frombuffer(wkb, head, 3, offset=1)
    if kind != 3 or rings < 1:
        raise ValueError(f"a geometry of kind {kind} with {rings} rings; expected a polygon")
    numbers = np.frombuffer(wkb, _POINT.newbyteorder("<" if wkb[0] else ">"), int(points) * 2, offset=13)
    return numbers.reshape(-1, 2).astype(np.float64)


def _size(path: Path, sides: np.ndarray, spec: dict[str, Any], region: str) -> float | None:
    """The patch size: what the tile_spec says, if the polygons say so too; the polygons' where there is no spec."""
    stated = _at_level0(spec, "width")
    if not len(sides):
        return stated
    values, counts = np.unique(sides, return_counts=True)
    drawn = float(values[counts.argmax()])
    if stated is not None and abs(stated - drawn) > 1:
        raise BagError(
            f"{path}: tile_spec[{region!r}] makes a tile {stated:g} level-0 pixels wide, its polygons are {drawn:g}; "
            "one of the two is wrong, and positions would be too"
        )
    return drawn


def _at_level0(spec: dict[str, Any], key: str) -> float | None:
    """A length of the tile_spec in whole level-0 pixels, as wsidata rounds it."""
    scale = spec.get("base_downsample")
    return float(int(spec[key] * scale)) if key in spec and scale else None
