from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from abbe.errors import BagError, ConfigError
from abbe.store.bags import peek_bag, read_bag, write_bag
from abbe.store.commit import is_done
from abbe.types import Bag
from builders import make_bag


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    bag = make_bag(37)
    path = tmp_path / "features_test" / "slide.h5"
    write_bag(path, bag)
    back = read_bag(path)
    assert torch.equal(back.features, bag.features)
    assert bag.coords is not None
    assert torch.equal(back.coords, bag.coords)  # type: ignore[arg-type]
    assert (back.patch_size_level0, back.stride_level0, back.mpp, back.encoder) == (256, 256, 0.5, "test")
    assert back.slide_id == "slide"
    assert peek_bag(path) == (37, 16, "test")
    assert is_done(path)


def test_the_file_is_trident_s(tmp_path: Path) -> None:
    write_bag(tmp_path / "s.h5", make_bag(3))
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["coords"].dtype == np.int64
        assert file["features"].chunks == (3, 16)
        assert {
            "patch_size",
            "patch_size_level0",
            "level0_magnification",
            "target_magnification",
            "overlap",
            "name",
            "savetodir",
        } <= set(file["coords"].attrs)
        assert set(file["features"].attrs) == {"name", "savetodir", "encoder", "abbe_kind"}


def test_same_bag_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bag(tmp_path / name / "s.h5", make_bag(50))
    assert (tmp_path / "a/s.h5").read_bytes() == (tmp_path / "b/s.h5").read_bytes()


def foreign(path: Path, *, features: np.ndarray | None = None, attrs: dict[str, float] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((4, 8), np.float32) if features is None else features
        file["coords"] = np.array([[0, 0], [512, 0], [0, 512], [512, 512]])
        file["coords"].attrs.update(attrs or {})
    return path


def test_a_file_without_a_size_names_the_option_that_gives_it(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.h5")
    with pytest.raises(BagError, match=r"no attribute 'patch_size_level0'.*--patch-size-level0"):
        read_bag(path)
    assert read_bag(path, patch_size_level0=512).positions[1].tolist() == [1.5, 0.5]


def test_the_size_may_lie_in_the_patches_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "features_x").mkdir()
    (tmp_path / "patches").mkdir()
    path = foreign(tmp_path / "features_x" / "s.h5")
    with h5py.File(tmp_path / "patches" / "s_patches.h5", "w") as file:
        file["coords"] = np.zeros((1, 2))
        file["coords"].attrs["patch_size_level0"] = 512
    assert read_bag(path).patch_size_level0 == 512


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"patch_size_level0": 500}, "mostly steps by 512 level-0 pixels.*state 500"),
        ({"patch_size": 256, "patch_size_level0": 500, "overlap": 0}, "mostly steps by 512 level-0 pixels.*state 500"),
        (
            {"patch_size": 256, "patch_size_level0": 1024, "overlap": 0},
            "mostly steps by 512 level-0 pixels.*state 1024",
        ),
    ],
)
def test_a_step_that_belies_the_size_is_refused(tmp_path: Path, attrs: dict[str, float], message: str) -> None:
    with pytest.raises(BagError, match=message):
        read_bag(foreign(tmp_path / "x.h5", attrs=attrs))


def test_the_option_must_not_contradict_the_file(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.h5", attrs={"patch_size_level0": 512})
    with pytest.raises(BagError, match=r"is 512, but --patch-size-level0 is 256"):
        read_bag(path, patch_size_level0=256)


def test_nan_is_refused_with_the_file(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.h5", features=np.full((4, 8), np.nan, np.float32))
    with pytest.raises(BagError, match=r"x\.h5.*features\[0, 0\] is nan"):
        read_bag(path, patch_size_level0=512)


def test_empty_slides_in_both_of_trident_s_shapes(tmp_path: Path) -> None:
    for name, shape in (("a", (0,)), ("b", (0, 8))):
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file["features"] = np.zeros(shape, np.float32)
            file["coords"] = np.zeros((0,) if len(shape) == 1 else (0, 2), np.int64)
            file["coords"].attrs["patch_size_level0"] = 512
        assert len(read_bag(path)) == 0
        assert peek_bag(path)[0] == 0


def test_what_is_no_feature_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("not hdf5")
    with pytest.raises(BagError, match=r"x\.h5: cannot be opened as HDF5"):
        read_bag(tmp_path / "x.h5")
    with pytest.raises(BagError, match="no such file"):
        read_bag(tmp_path / "y.h5")
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file["embeddings"] = np.zeros(3)
    with pytest.raises(BagError, match=r"no dataset 'features' or 'feats' \(found: embeddings\)"):
        read_bag(tmp_path / "z.h5")
    with pytest.raises(ConfigError, match="Did you mean 'trident'"):
        read_bag(tmp_path / "x.h5", "tridant")


def test_a_flipped_bit_in_a_chunk_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    write_bag(path, make_bag(64))
    data = bytearray(path.read_bytes())
    at = data.find(make_bag(64).features[20].numpy().tobytes())
    assert at > 0
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(BagError, match="dataset 'features' cannot be read"):
        read_bag(path)


def test_a_bare_bag_has_no_place_in_this_layout(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="needs coords"):
        write_bag(tmp_path / "x.h5", Bag(torch.ones(2, 2), None, None, "bare"))
