"""What a feature file says of how it was made, and when two files are of one kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from abbe.errors import BagError
from abbe.store.bags import read_kind, write_bag
from abbe.store.convert import convert_bags
from abbe.store.kind import Kind, common_kind, group_by_kind, unknown_in_part
from abbe.store.settings import ConvertSettings
from abbe.store.trident import Geometry, write_features
from builders import make_bag, write_clam, write_stamp, write_wsidata

GEOMETRY = Geometry(128, 256.0, 20.0, 10.0, 16, 4000, 4000, 0.5, "slide", "10x_128px_16px_overlap")


def test_a_file_of_abbe_states_everything_without_its_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "slide.h5"
    write_features(path, make_bag(5), GEOMETRY, kind=Kind("test", "2", 1.0, 128, 16))
    (tmp_path / "slide.h5.sha256.json").unlink()
    assert read_kind(path) == Kind("test", "2", 1.0, 128, 16, 256, 0.5)


def test_an_earlier_file_states_the_mpp_asked_for_and_its_sidecar_the_version(tmp_path: Path) -> None:
    """A scan of 0.4942 µm is read as it is for --mpp 0.5: its own mpp is in the attributes, the kind is 0.5."""
    path = tmp_path / "slide.h5"
    geometry = Geometry(256, 256.0, 20.23, 20.23, 0, 4000, 4000, 0.4942, "slide", "20x_256px_0px_overlap")
    write_features(path, make_bag(5), geometry, {"encoder_version": 2})
    assert read_kind(path).own() == {"version": "2", "mpp": 0.5, "patch_size": 256, "overlap": 0}
    path.write_bytes(path.read_bytes() + b"x")  # the sidecar is now of another file
    assert read_kind(path).version is None


def trident_file(path: Path, **attributes: float) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((2, 4), np.float32)
        file["coords"] = np.array([[0, 0], [512, 0]])
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512, "overlap": 0, **attributes})
    return path


def test_each_layout_states_what_it_can(tmp_path: Path) -> None:
    path = trident_file(tmp_path / "t.h5", target_magnification=20, level0_magnification=40)
    assert read_kind(path).own() == {"mpp": 0.5, "patch_size": 256, "overlap": 0}
    assert read_kind(trident_file(tmp_path / "u.h5")).own() == {}
    bag = make_bag(25)
    assert read_kind(write_clam(tmp_path / "clam", bag)) == Kind(patch_size_level0=256)
    stamp = write_stamp(tmp_path / "s.h5", bag, tile_size_um=256.0)
    assert read_kind(stamp).own() == {"mpp": pytest.approx(256 / 224), "patch_size": 224}
    write_bag(tmp_path / "b.safetensors", bag, "tensors")
    assert read_kind(tmp_path / "b.safetensors") == Kind("test", patch_size_level0=256, level0_mpp=0.5)
    np.save(tmp_path / "bare.npy", bag.features.numpy())
    assert read_kind(tmp_path / "bare.npy") == Kind()


def test_a_zarr_store_states_its_tile_spec(tmp_path: Path) -> None:
    spec = {"mpp": 0.5, "width": 256, "height": 256, "stride_width": 224, "base_downsample": 1}
    store = write_wsidata(tmp_path / "s.zarr", make_bag(4), {"uni2": np.zeros((4, 8), np.float32)}, spec=spec)
    assert read_kind(store) == Kind("uni2", mpp=0.5, patch_size=256, overlap=32)


def test_of_a_store_with_two_encoders_one_is_converted_with_its_kind(tmp_path: Path) -> None:
    models = {"uni2": np.zeros((4, 8), np.float32), "plip": np.zeros((4, 8), np.float32)}
    spec = {"mpp": 0.5, "width": 256, "height": 256, "stride_width": 256, "base_downsample": 1}
    store = write_wsidata(tmp_path / "s.zarr", make_bag(4), models, spec=spec)
    with pytest.raises(BagError, match=r"s\.zarr: features of 2 encoders"):
        read_kind(store)
    (outcome,) = convert_bags([store], tmp_path / "out", ConvertSettings(encoder="plip"))
    assert (outcome.outcome, outcome.reason) == ("done", "")
    found = read_kind(tmp_path / "out" / "s.h5")
    assert (found.encoder, found.mpp, found.patch_size) == ("plip", 0.5, 256)


@pytest.mark.parametrize("to", ["trident", "tensors", "clam", "stamp"])
def test_a_converted_file_keeps_the_kind(to: str, tmp_path: Path) -> None:
    source = tmp_path / "slide.h5"
    kind = Kind("test", "2", 1.0, 128, 0)
    write_features(source, make_bag(5), replace(GEOMETRY, overlap=0), kind=kind)
    (outcome,) = convert_bags([source], tmp_path / "out", ConvertSettings(to=to))  # type: ignore[arg-type]
    assert outcome.outcome == "done"
    (path,) = (item for item in (tmp_path / "out").rglob("slide.*") if item.suffix in (".h5", ".safetensors") and
               item.parent.name != "patches")  # fmt: skip
    assert read_kind(path).own() == kind.own()


@pytest.mark.parametrize("value", ['{"mpp": "half"}', '{"size": 3}', "[1]", "{", '{"version": 2}'])
def test_a_kind_that_is_not_one_is_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.h5"
    write_bag(path, make_bag(3))
    with h5py.File(path, "r+") as file:
        file["features"].attrs["abbe_kind"] = value
    with pytest.raises(BagError, match=r"slide\.h5"):
        read_kind(path)


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        (Kind(mpp=0.5), Kind(mpp=0.504), []),
        (Kind(mpp=0.5), Kind(mpp=0.52), ["mpp"]),
        (Kind(mpp=0.5), Kind(), []),
        (Kind("uni_v2", "1"), Kind("UNI2-h", "2"), ["encoder version"]),
        (Kind("uni"), Kind("uni_v2"), ["encoder"]),
        (Kind(patch_size=256, overlap=0), Kind(patch_size=224, overlap=32), ["patch size", "overlap"]),
        # Scans of 0.25 and 0.5 µm, both cut at 0.5: their sizes at level 0 differ and mean nothing.
        (Kind(mpp=0.5, patch_size_level0=512, level0_mpp=0.25), Kind(mpp=0.5, patch_size_level0=256), []),
        (Kind(patch_size_level0=512, level0_mpp=0.25), Kind(patch_size_level0=256, level0_mpp=0.5), []),
        (Kind(patch_size_level0=512, level0_mpp=0.5), Kind(mpp=0.5, patch_size=256), ["side of a patch in microns"]),
        (Kind(patch_size_level0=512), Kind(patch_size_level0=256), ["patch size at level 0"]),
        (Kind(patch_size_level0=512), Kind(mpp=0.5, patch_size=256, patch_size_level0=256), []),
    ],
)
def test_two_files_differ_where_both_state_a_key(one: Kind, other: Kind, keys: list[str]) -> None:
    for found in (one.differences(other), other.differences(one)):
        assert len(found) == len(keys)
        assert all(text.startswith(key) for text, key in zip(found, keys, strict=True))


def test_kinds_of_a_cohort_are_listed_and_joined() -> None:
    fine, coarse, silent = Kind("t", mpp=0.5, patch_size=256), Kind("t", mpp=1.0, patch_size=256), Kind("t")
    groups = group_by_kind({"a": fine, "b": coarse, "c": fine, "d": silent})
    assert [names for _, names in groups] == [["a", "c", "d"], ["b"]]
    assert common_kind([fine, coarse, silent]) == Kind("t", patch_size=256)
    assert common_kind([silent, fine]) == fine
    lengths = [Kind(patch_size_level0=512, level0_mpp=0.25), Kind(patch_size_level0=256, level0_mpp=0.5)]
    assert common_kind(lengths) == Kind()
    (mpp, size) = unknown_in_part({"a": fine, "d": silent})
    assert "mpp" in mpp and "1 of 2" in mpp and "d" in mpp  # noqa: PT018
    assert "patch size" in size
    assert unknown_in_part({"a": silent, "b": silent}) == []


def test_a_kind_is_written_as_json(tmp_path: Path) -> None:
    kind = Kind("t", "2", 0.5, 256, 0, 512, 0.25)
    assert Kind(**json.loads(json.dumps(kind.stated()))) == kind
