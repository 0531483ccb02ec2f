"""LazySlide's stores. They need zarr, the extra `wsidata`; without it these tests skip and say so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from abbe.errors import BagError
from abbe.store.bags import layout_of, peek_bag, read_bag
from abbe.store.convert import convert_bags
from builders import make_bag, write_wsidata

SPEC = {"height": 128, "width": 128, "stride_height": 128, "stride_width": 128, "mpp": 1.0, "base_downsample": 2.0}
needs_zarr = pytest.mark.skipif(
    importlib.util.find_spec("zarr") is None, reason="the extra `wsidata` (zarr) is not installed"
)


@needs_zarr
@pytest.mark.parametrize("spec", [SPEC, None])
def test_a_store_of_one_encoder(tmp_path: Path, spec: dict[str, object] | None) -> None:
    bag = make_bag(25)
    path = write_wsidata(tmp_path / "slide.zarr", bag, {"uni2": bag.features.numpy()}, spec=spec)
    found = read_bag(path)
    assert torch.equal(found.features, bag.features)
    assert found.coords is not None
    assert torch.equal(found.coords, bag.coords)  # type: ignore[arg-type]
    assert (found.patch_size_level0, found.stride_level0) == (256, 256 if spec else None)
    assert (found.mpp, found.level0_size, found.encoder, found.slide_id) == (0.5, (9000, 5000), "uni2", "slide")
    assert (layout_of(path), peek_bag(path)) == ("wsidata", (25, 16, "uni2"))
    (row,) = convert_bags([tmp_path], tmp_path / "out")
    assert (row.outcome, row.patches) == ("done", 25)
    assert torch.equal(read_bag(tmp_path / "out" / "slide.h5").features, bag.features)


@needs_zarr
def test_of_several_encoders_one_must_be_named(tmp_path: Path) -> None:
    bag = make_bag(25)
    models = {"uni2": bag.features.numpy(), "resnet50": np.ones((25, 3), np.float32)}
    path = write_wsidata(tmp_path / "slide.zarr", bag, models)
    with pytest.raises(BagError, match=r"features of 2 encoders \(resnet50, uni2\); choose one with --encoder"):
        read_bag(path)
    assert read_bag(path, encoder="UNI2-h").width == 16
    assert read_bag(path, encoder="resnet50").width == 3


@needs_zarr
def test_refusals(tmp_path: Path) -> None:
    bag = make_bag(25)
    models = {"uni2": bag.features.numpy()}
    path = write_wsidata(tmp_path / "slide.zarr", bag, models, spec={**SPEC, "width": 100})
    with pytest.raises(BagError, match=r"tile_spec\['tiles'\] states tiles of 200 level-0 pixels.*have 256"):
        read_bag(path)
    shapes = path / "shapes" / "tiles" / "shapes.parquet"
    table = pq.read_table(shapes)
    pq.write_table(table.slice(0, 24), shapes)
    with pytest.raises(BagError, match=r"row 0 of .*uni2_tiles.* is tile 0, which has no shape in 'tiles'"):
        read_bag(path)
    pq.write_table(pa.table({"tile_id": [0], "geometry": [b"\x01\x01\x00\x00\x00" + b"\x00" * 16]}), shapes)
    with pytest.raises(BagError, match=r"row 0 of 'geometry' has WKB type 1 .*expected a polygon"):
        read_bag(path)
    shapes.unlink()
    with pytest.raises(BagError, match=r"no shapes/tiles/shapes\.parquet"):
        read_bag(path)
    with pytest.raises(BagError, match=r"no table of tile features \(tables: none\)"):
        read_bag(write_wsidata(tmp_path / "none.zarr", bag, {}))
    (tmp_path / "torn.zarr").mkdir()
    with pytest.raises(BagError, match=r"torn\.zarr: cannot be opened as a zarr group"):
        read_bag(tmp_path / "torn.zarr")


@pytest.mark.skipif(importlib.util.find_spec("zarr") is not None, reason="the extra `wsidata` is installed")
def test_without_the_extra_its_name_is_said(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    with pytest.raises(BagError, match=r"needs the extra: pip install 'abbe\[wsidata\]'"):
        read_bag(tmp_path / "s.zarr")
