"""What is written reads back the same, and what a layout cannot hold is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from abbe.errors import BagError, ConfigError
from abbe.store.bags import WRITTEN, layout_of, peek_bag, read_bag, suffix_of, write_bag
from abbe.store.commit import is_done, read_sidecar
from abbe.types import Bag
from builders import make_bag

BARE = Bag(torch.randn(5, 3), None, None, "bare")


def whole(n: int = 37) -> Bag:
    """A bag every layout can hold, with all it can say."""
    return replace(make_bag(n), level0_size=(2560, 1100))


@pytest.mark.parametrize("n", [0, 1, 37])
@pytest.mark.parametrize("layout", WRITTEN)
def test_round_trip(tmp_path: Path, layout: str, n: int) -> None:
    bag = whole(n)
    path = tmp_path / f"slide{suffix_of(layout)}"
    write_bag(path, bag, layout, made_with={"why": "test"})
    back = read_bag(path, mpp=0.5 if layout == "stamp" else None)
    assert layout_of(path) == layout
    assert bag.coords is not None
    assert back.coords is not None
    assert torch.equal(back.coords, bag.coords)
    half = layout == "stamp"
    assert torch.equal(back.features, bag.features.half() if half else bag.features)
    assert (back.patch_size_level0, back.slide_id) == (256.0, "slide")
    assert back.level0_size == (None if half else (2560, 1100))
    assert back.mpp == (None if layout == "clam" else 0.5)
    assert back.encoder == (None if layout == "clam" else "test")
    assert back.stride_level0 == (256.0 if layout in ("tensors", "trident") else None)
    assert peek_bag(path) == (n, 16, back.encoder)
    assert is_done(path)
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar["made_with"]["why"] == "test"


@pytest.mark.parametrize("layout", WRITTEN)
def test_same_bag_same_bytes(tmp_path: Path, layout: str) -> None:
    path = [tmp_path / name / f"s{suffix_of(layout)}" for name in "ab"]
    for item in path:
        write_bag(item, whole(), layout)
    assert path[0].read_bytes() == path[1].read_bytes()


def test_tensors_hold_any_bag(tmp_path: Path) -> None:
    bag = Bag(torch.randn(4, 3).half(), torch.tensor([[0.5, 0], [98.25, 0], [196, 0], [0, 97.75]]), 97.75, "odd")
    for name, one in (("odd", bag), ("bare", BARE)):
        write_bag(tmp_path / f"{name}.safetensors", one, "tensors")
        back = read_bag(tmp_path / f"{name}.safetensors")
        assert torch.equal(back.features, one.features)
        assert back.features.dtype == one.features.dtype
        assert back.patch_size_level0 == one.patch_size_level0
    assert back.coords is None
    with safe_open(tmp_path / "odd.safetensors", "pt") as file:
        assert file.metadata() == {"abbe_bag": '{"version": 1, "slide_id": "odd", "patch_size_level0": 97.75}'}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "'abbe_bag' in the header is not valid JSON"),
        ('{"mpp": "half"}', "'mpp' is 'half'; expected a positive number"),
        ("{}", "'patch_size_level0' in the header; give the patch size with --patch-size-level0"),
        ('{"patch_size_level0": 256, "stride_level0": 200}', "mostly steps by 256 level-0 pixels.*state 200"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, header: str, message: str) -> None:
    bag = make_bag(5)
    assert bag.coords is not None
    save_file({"features": bag.features, "coords": bag.coords}, tmp_path / "x.safetensors", {"abbe_bag": header})
    with pytest.raises(BagError, match=rf"x\.safetensors.*{message}"):
        read_bag(tmp_path / "x.safetensors")


def test_clam_s_files_are_clam_s(tmp_path: Path) -> None:
    write_bag(tmp_path / "h5_files" / "s.h5", whole(), "clam")
    with h5py.File(tmp_path / "patches" / "s.h5") as file:
        assert file["coords"].dtype == np.int32
        attributes = {key: np.asarray(value).tolist() for key, value in file["coords"].attrs.items()}
    assert attributes == {
        "patch_size": 256,
        "patch_level": 0,
        "downsample": [1.0, 1.0],
        "downsampled_level_dim": [2560, 1100],
        "level_dim": [2560, 1100],
        "name": "slide",
        "save_path": "patches",
    }
    with h5py.File(tmp_path / "h5_files" / "s.h5") as file:
        assert {name: (file[name].dtype, len(file[name].attrs)) for name in file} == {
            "features": (np.float32, 0),
            "coords": (np.int32, 0),
        }


def test_stamp_s_file_is_stamp_s(tmp_path: Path) -> None:
    write_bag(tmp_path / "s.h5", whole(), "stamp")
    with h5py.File(tmp_path / "s.h5") as file:
        assert (file["feats"].dtype, file["coords"].dtype) == (np.float16, np.float32)
        assert file["coords"][1].tolist() == [128.0, 0.0]
        assert dict(file.attrs) == {
            "stamp_version": "2.1.0",
            "extractor": "test",
            "unit": "um",
            "tile_size_um": 128.0,
            "feat_type": "tile",
        }


def large(layout: str) -> Bag:
    bag = whole(3)
    bag.features[1, 2] = 70_000
    return bag


@pytest.mark.parametrize(
    ("layout", "bag", "message"),
    [
        ("trident", BARE, r"the trident layout needs coords and patch_size_level0; .*; write --to tensors"),
        ("clam", BARE, "the clam layout needs coords and patch_size_level0"),
        ("stamp", BARE, "the stamp layout needs coords and patch_size_level0"),
        ("stamp", replace(make_bag(3), mpp=None), r"coords in micrometres; give the mpp with --override-mpp"),
        ("stamp", large("stamp"), r"features\[1, 2\] is 70000, but the stamp layout stores float16, up to 65504"),
        (
            "clam",
            Bag(torch.ones(2, 2), torch.tensor([[0.0, 0.0], [256.5, 0]]), 256, "s"),
            r"coords\[1\] = \[256\.5, 0\.0\] does not fit int32",
        ),
        (
            "clam",
            Bag(torch.ones(2, 2), torch.tensor([[0.0, 0.0], [2.0**40, 0]]), 256, "s"),
            r"coords\[1\] = .* does not fit int32",
        ),
        ("clam", Bag(torch.ones(1, 2), torch.zeros(1, 2), 97.5, "s"), r"patch_size_level0 is 97\.5.*whole pixels"),
    ],
)
def test_what_a_layout_cannot_hold(tmp_path: Path, layout: str, bag: Bag, message: str) -> None:
    with pytest.raises(BagError, match=message):
        write_bag(tmp_path / "x.h5", bag, layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp"])
def test_a_bare_bag_is_refused_by_its_file(tmp_path: Path, layout: str) -> None:
    bag = replace(BARE, source="in/a.pt")
    with pytest.raises(BagError, match=rf"^in/a\.pt: the {layout} layout .* --to tensors"):
        write_bag(tmp_path / "a.h5", bag, layout)


@pytest.mark.parametrize("layout", ["clam", "stamp"])
@pytest.mark.parametrize("stride", [192, 512])
def test_a_step_that_is_lost_can_be_said(tmp_path: Path, layout: str, stride: int) -> None:
    bag = whole()
    assert bag.coords is not None
    bag = replace(bag, coords=bag.coords / 256 * stride, stride_level0=float(stride), level0_size=None)
    path = tmp_path / "h5_files" / "a.h5"
    write_bag(path, bag, layout)
    with pytest.raises(BagError, match="--stride-level0"):
        read_bag(path, mpp=bag.mpp)
    assert read_bag(path, mpp=bag.mpp, stride_level0=stride).stride_level0 == stride


def test_layouts_that_are_only_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown layout 'wsidata'"):
        write_bag(tmp_path / "x.zarr", whole(), "wsidata")
    with pytest.raises(BagError, match=r"the tensors layout is a \.safetensors file"):
        write_bag(tmp_path / "x.h5", whole(), "tensors")
