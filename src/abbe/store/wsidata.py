"""LazySlide's layout, as wsidata writes it: `<slide>.zarr`, a SpatialData store.

    tables/<model>_tiles/X       features [N, D]; obs/tile_id is the tile of each row
    shapes/tiles/shapes.parquet  tile_id and the polygon of each tile (WKB), level-0 pixels
    attributes of the root       tile_spec (sizes of the tiles), slide_properties (mpp, shape)

A tile's coordinates are the minimum of its polygon, and its polygon is as large as the patch. Needs the extra `wsidata`
(only zarr).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abbe.errors import BagError
from abbe.store.aliases import same_encoder
from abbe.store.kind import Kind
from abbe.store.parts import Overrides, Peek, assemble, number, resolve_patch_size, shape_of
from abbe.types import MPP, Bag, Px0

NAME = "wsidata"
_REGION = "tiles"
_ZARR_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
)  # what zarr raises for damaged metadata and chunks
_HEAD = 9  # bytes of a WKB polygon before its first ring: byte order, type, number of rings
_POLYGON = 3


def read(path: Path, overrides: Overrides) -> Bag:
    """The features of one encoder; of `overrides.encoder` if the store has several.

    Raises BagError naming the tables found, or the tile without a shape.
    """
    root = _open(path)
    table, encoder = _table(path, root, overrides.encoder)
    with _reading(path):
        region = str(table.attrs.get("region", _REGION))
        key = str(table.attrs.get("instance_key", "tile_id"))
        tile_of_row = np.asarray(table[f"obs/{key}"][...]) if f"obs/{key}" in table else None
        features = np.asarray(table["X"][...])
        about = dict(root.attrs)
    if tile_of_row is None:
        raise BagError(f"{path}: table {table.path!r} has no obs/{key}, which states the tile of each row")
    tiles, low, sides = _shapes(path, region, key)
    if not {tiles.dtype.kind, tile_of_row.dtype.kind} <= {"i", "u"}:
        raise BagError(
            f"{path}: {key} is {tile_of_row.dtype} in {table.path!r}, {tiles.dtype} in {region!r}; expected integers"
        )
    order = np.argsort(tiles)
    at = np.searchsorted(tiles[order], tile_of_row).clip(0, max(0, len(tiles) - 1))
    missing = np.flatnonzero(tiles[order][at] != tile_of_row) if len(tiles) else np.arange(len(tile_of_row))
    if len(missing):
        row = int(missing[0])
        raise BagError(
            f"{path}: row {row} of {table.path!r} is tile {tile_of_row[row]}, which has no shape in {region!r}"
        )
    rows = order[at]
    spec = _object(path, _object(path, about, "tile_spec"), region)
    slide = _object(path, about, "slide_properties")
    size = resolve_patch_size(
        path,
        _size(path, sides[rows], spec, region),
        overrides,
        source=f"tile_spec[{region!r}]",
        missing=f"no tile_spec for {region!r}, and no tiles",
    )
    return assemble(
        path,
        features,
        low[rows],
        size,
        overrides,
        name=f"{table.path}/X",
        stride=_at_level0(path, spec, "stride_width"),
        mpp=MPP(number(path, slide, "mpp")) if slide.get("mpp") else None,
        level0_size=_slide_size(path, slide),
        encoder=encoder,
    )


def peek(path: Path, encoder: str | None = None) -> Peek:
    """(N, D, encoder), without reading an array."""
    table, name = _table(path, _open(path), encoder)
    with _reading(path):
        shape = tuple(table["X"].shape)
    return *shape_of(path, f"{table.path}/X", shape), name


def kind(path: Path, encoder: str | None = None) -> Kind:
    """The kind, from tile_spec: the mpp that was asked for, and sizes in pixels at that mpp."""
    root = _open(path)
    table, encoder = _table(path, root, encoder)
    with _reading(path):
        about, region = dict(root.attrs), str(table.attrs.get("region", _REGION))
    spec = _object(path, _object(path, about, "tile_spec"), region)

    def stated(key: str) -> float | None:
        return number(path, spec, key) if spec.get(key) is not None else None

    mpp, width, stride = stated("mpp"), stated("width"), stated("stride_width")
    if mpp is None:
        return Kind(encoder, patch_size_level0=_at_level0(path, spec, "width"))
    overlap = None if width is None or stride is None else width - stride
    return Kind(encoder, mpp=mpp, patch_size=width, overlap=overlap)


def _open(path: Path) -> Any:
    try:
        zarr = importlib.import_module("zarr")
    except ImportError as error:
        raise BagError(f"{path}: reading a .zarr store needs the extra: pip install 'abbe[wsidata]'") from error
    try:
        return zarr.open_group(path, mode="r")
    except _ZARR_ERRORS as error:
        raise BagError(f"{path}: cannot be opened as a zarr group ({error})") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """For zarr calls only."""
    try:
        yield
    except _ZARR_ERRORS as error:
        raise BagError(f"{path}: the zarr store cannot be read ({error})") from error


def _table(path: Path, root: Any, encoder: str | None) -> tuple[Any, str]:
    """(table, its encoder's name): tables of features are those with a 2-D X whose rows are tiles."""
    found = {}
    with _reading(path):
        tables = dict(root["tables"].groups()) if "tables" in root else {}
        for name, table in tables.items():
            if "X" in table and getattr(table["X"], "ndim", 0) == 2 and "obs/tile_id" in table:
                found[name.removesuffix(f"_{table.attrs.get('region', _REGION)}")] = table
    if encoder is not None:
        found = {name: table for name, table in found.items() if same_encoder(name, encoder)} or found
    if len(found) == 1:
        return next(iter(found.items()))[::-1]
    if not found:
        raise BagError(f"{path}: no table of tile features (tables: {', '.join(sorted(tables)) or 'none'})")
    raise BagError(f"{path}: features of {len(found)} encoders ({', '.join(sorted(found))}); choose one with --encoder")


def _shapes(path: Path, region: str, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids [M], minimum corners [M, 2], longer sides [M]) of the tiles."""
    shapes = path / "shapes" / region / "shapes.parquet"
    if not shapes.is_file():
        raise BagError(f"{path}: no {shapes.relative_to(path)}, which has the coordinates of the tiles")
    try:
        table = pq.read_table(shapes)
    except (pa.ArrowException, OSError) as error:
        raise BagError(f"{shapes}: cannot be read as parquet ({error})") from error
    if "geometry" not in table.column_names:
        raise BagError(f"{shapes}: no column 'geometry' (found: {', '.join(table.column_names)})")
    polygons = [_points(shapes, row, value) for row, value in enumerate(table.column("geometry").to_pylist())]
    ids = table.column(key).to_numpy() if key in table.column_names else np.arange(table.num_rows)
    low = np.array([points.min(0) for points in polygons]).reshape(-1, 2)
    high = np.array([points.max(0) for points in polygons]).reshape(-1, 2)
    return np.asarray(ids), low, (high - low).max(1) if len(low) else np.zeros(0)


def _points(path: Path, row: int, wkb: Any) -> np.ndarray:
    """The outer ring of a polygon in well-known binary, [points, 2]. Raises BagError for anything else."""
    if not isinstance(wkb, bytes) or len(wkb) < _HEAD + 4:
        raise BagError(f"{path}: row {row} of 'geometry' is not a polygon in well-known binary")
    order = "<" if wkb[0] else ">"
    kind, rings, points = np.frombuffer(wkb, f"{order}u4", 3, offset=1).tolist()
    ring = wkb[_HEAD + 4 :]
    if kind != _POLYGON or rings < 1 or not 0 < points <= len(ring) // 16:
        raise BagError(f"{path}: row {row} of 'geometry' has WKB type {kind} and {rings} rings; expected a polygon")
    return np.frombuffer(ring, f"{order}f8", points * 2).reshape(-1, 2).astype(np.float64)


def _size(path: Path, sides: np.ndarray, spec: dict[str, Any], region: str) -> Px0 | None:
    """The patch size: that of the polygons, which must agree with the tile_spec."""
    stated = _at_level0(path, spec, "width")
    if not len(sides):
        return stated
    values, counts = np.unique(sides, return_counts=True)
    drawn = Px0(float(values[counts.argmax()]))
    if stated is not None and abs(stated - drawn) > 1:
        raise BagError(
            f"{path}: tile_spec[{region!r}] states tiles of {stated:g} level-0 pixels, but their polygons have "
            f"{drawn:g}; one of them is wrong, and positions would be wrong too"
        )
    return drawn


def _at_level0(path: Path, spec: dict[str, Any], key: str) -> Px0 | None:
    """A length of the tile_spec in whole level-0 pixels, as wsidata rounds it."""
    if key not in spec or not spec.get("base_downsample"):
        return None
    return Px0(float(int(number(path, spec, key) * number(path, spec, "base_downsample"))))


def _slide_size(path: Path, slide: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) of the slide; stored as [height, width]."""
    shape = slide.get("shape")
    if not shape:
        return None
    if not isinstance(shape, list | tuple) or len(shape) < 2:
        raise BagError(f"{path}: slide_properties: shape is {shape!r}; expected [height, width]")
    height, width = (number(path, {"shape": side}, "shape") for side in shape[:2])
    return int(width), int(height)


def _object(path: Path, attributes: dict[str, Any], key: str) -> dict[str, Any]:
    value = attributes.get(key) or {}
    if not isinstance(value, dict):
        raise BagError(f"{path}: attribute {key!r} is {str(value)[:80]}; expected an object")
    return value
