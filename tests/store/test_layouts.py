"""Every layout as its own tool writes it, and what of it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from abbe.errors import BagError, ConfigError
from abbe.store.bags import LAYOUTS, layout_of, peek_bag, read_bag, write_bag
from abbe.types import Bag
from builders import make_bag, write_clam, write_slidechat, write_stamp


def same(one: Bag, other: Bag) -> None:
    assert torch.equal(one.features, other.features)
    assert one.coords is not None
    assert other.coords is not None
    assert torch.equal(one.coords, other.coords)
    assert one.patch_size_level0 == other.patch_size_level0


# CLAM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "downsample", "old"), [(0, 1.0, False), (1, 4.0, False), (1, 4.0, True)])
def test_clam_takes_its_geometry_from_the_patches(tmp_path: Path, level: int, downsample: float, old: bool) -> None:
    bag = make_bag(25)
    path = write_clam(tmp_path, bag, level=level, downsample=downsample, old=old)
    found = read_bag(path)
    same(found, bag)
    assert found.level0_size == ((20_000, 10_000) if level == 0 else None)
    assert (layout_of(path), peek_bag(path)) == ("clam", (25, 16, None))


def test_clam_s_bare_tensor_finds_its_patches(tmp_path: Path) -> None:
    bag = make_bag(25)
    write_clam(tmp_path, bag)
    path = tmp_path / "pt_files" / "slide.pt"
    same(read_bag(path), bag)
    assert (layout_of(path), peek_bag(path)) == ("clam", (25, 16, None))
    (tmp_path / "patches" / "slide.h5").unlink()
    assert (layout_of(path), read_bag(path).coords) == ("tensors", None)
    with pytest.raises(
        BagError, match=r"tensor without coordinates, and no patches file .*patches/slide\.h5.*--layout tensors"
    ):
        read_bag(path, "clam")


def test_clam_s_old_custom_downsample_counts(tmp_path: Path) -> None:
    path = write_clam(tmp_path, make_bag(25), downsample=2.0)
    with h5py.File(tmp_path / "patches" / "slide.h5", "a") as file:
        file["coords"].attrs["patch_size"] = 64
        file["coords"].attrs["custom_downsample"] = 2
    assert read_bag(path).patch_size_level0 == 256


def test_clam_without_patches_needs_the_size(tmp_path: Path) -> None:
    path = write_clam(tmp_path, make_bag(25))
    (tmp_path / "patches" / "slide.h5").unlink()
    with pytest.raises(BagError, match=r"CLAM stores the patch size in .*patches/slide\.h5.*--patch-size-level0"):
        read_bag(path, "clam")
    with pytest.raises(BagError, match=r"no patches file of TRIDENT or CLAM.*--patch-size-level0"):
        read_bag(path)
    assert read_bag(path, patch_size_level0=256).patch_size_level0 == 256


def test_clam_s_patches_must_be_those_of_the_features(tmp_path: Path) -> None:
    path = write_clam(tmp_path, make_bag(25))
    with h5py.File(tmp_path / "patches" / "slide.h5", "a") as file:
        file["coords"][3] = (9, 9)
    with pytest.raises(
        BagError, match=r"its 25 coords are not the 25 of .*patches/slide\.h5.*extract the features again"
    ):
        read_bag(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_level": None}, r"dataset 'coords' lacks the attributes patch_level"),
        ({"downsample": (1.0, 2.0)}, r"'downsample' is \(1, 2\); expected two equal numbers"),
        ({"patch_size": 200}, r"mostly steps by 256 level-0 pixels.*state 200"),
        ({"patch_size": "256"}, r"attribute 'patch_size' is '256'; expected a positive number"),
        ({"patch_size": 0}, r"attribute 'patch_size' is 0; expected a positive number"),
        ({"downsample": (1.0, 1.0, 1.0)}, r"attribute 'downsample' is .*; expected two numbers"),
    ],
)
def test_clam_s_attributes_must_make_sense(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_clam(tmp_path, make_bag(25))
    with h5py.File(tmp_path / "patches" / "slide.h5", "a") as file:
        for key, value in change.items():
            del file["coords"].attrs[key]
            if value is not None:
                file["coords"].attrs[key] = value
    with pytest.raises(BagError, match=message):
        read_bag(path)


def test_patches_alone_are_no_bag(tmp_path: Path) -> None:
    write_clam(tmp_path, make_bag(5))
    with pytest.raises(BagError, match="patches without features; name the feature file"):
        read_bag(tmp_path / "patches" / "slide.h5")


# STAMP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", [{}, {"tile_size": 128.0, "tile_size_um": None}])
def test_stamp_s_micrometres_become_pixels(tmp_path: Path, attributes: dict[str, object]) -> None:
    bag = make_bag(25)
    path = write_stamp(tmp_path / "slide.h5", bag, mpp=0.5, **attributes)
    found = read_bag(path, mpp=0.5)
    assert found.coords is not None
    assert bag.coords is not None
    assert torch.equal(found.coords, bag.coords)
    assert (found.patch_size_level0, found.mpp, found.encoder) == (256, 0.5, "mahmood-conch1_5")
    assert found.features.dtype == torch.float16
    assert (layout_of(path), peek_bag(path)) == ("stamp", (25, 16, "mahmood-conch1_5"))
    assert read_bag(path, mpp=0.25).patch_size_level0 == 512


@pytest.mark.parametrize(
    ("attributes", "options", "message"),
    [
        ({}, {}, r"coords are in micrometres \(tile_size_um 128\).*--override-mpp.*--slide"),
        ({"unit": "px"}, {"mpp": 0.5}, r"attribute 'unit' is 'px'; expected 'um'"),
        ({"tile_size_um": None}, {"mpp": 0.5}, r"unit is 'um' but attribute 'tile_size_um' .* is missing"),
        ({"tile_size_um": -1.0}, {"mpp": 0.5}, r"'tile_size_um' is -1; expected a positive number"),
        ({"tile_size_um": None, "unit": None}, {"mpp": 0.5}, r"no attribute 'unit' or 'tile_size_um'.*STAMP 1"),
        ({"feat_type": "slide"}, {"mpp": 0.5}, r"'feat_type' is 'slide'"),
        ({"tile_size_um": 100.0}, {"mpp": 0.5}, r"mostly steps by 256 level-0 pixels.*state 200"),
        (
            {},
            {"mpp": 0.5, "patch_size_level0": 512.0},
            r"tile_size_um / mpp = 128 / 0\.5 is 256, but --patch-size-level0 is 512",
        ),
    ],
)
def test_stamp_refusals(tmp_path: Path, attributes: dict[str, object], options: dict[str, float], message: str) -> None:
    path = write_stamp(tmp_path / "slide.h5", make_bag(25), **attributes)
    with pytest.raises(BagError, match=message):
        read_bag(path, **options)  # type: ignore[arg-type]


def test_float16_that_overflowed_is_named(tmp_path: Path) -> None:
    bag = make_bag(5)
    bag.features[2, 3] = 70_000
    path = write_stamp(tmp_path / "slide.h5", bag)
    with pytest.raises(BagError, match=r"slide\.h5.*features\[2, 3\] is inf.*'feats' is float16.*65504.*float32"):
        read_bag(path, mpp=0.5)


def test_real_features_without_attributes_need_the_size_and_the_right_one(data: Path) -> None:
    """MoPaDi's published TCGA features: `feats` and `coords` at a step of 512, and nothing else."""
    path = data / "features" / "mopadi" / "TCGA-AD-6964-01Z-00-DX1" / "features.h5"
    with pytest.raises(BagError, match=r"no attribute 'unit' or 'tile_size_um'.*--patch-size-level0"):
        read_bag(path)
    bag = read_bag(path, patch_size_level0=512)
    assert (len(bag), bag.width, bag.positions[0].tolist()) == (777, 512, [20.5, 42.5])
    for wrong, message in (
        (256, "no two patches would touch"),
        (1024, "--stride-level0"),
        (224, "mostly steps by 512"),
    ):
        with pytest.raises(BagError, match=message):
            read_bag(path, patch_size_level0=wrong)
    assert read_bag(path, patch_size_level0=1024, stride_level0=512).stride_level0 == 512


def test_real_features_without_coordinates_are_a_bare_bag(data: Path) -> None:
    path = data / "features" / "mopadi" / "TCGA-3X-AAVA-01Z-00-DX1" / "features.h5"
    bag = read_bag(path)
    assert (len(bag), bag.width, bag.coords) == (180, 512, None)


# GigaPath, HistGen, bare tensors ---------------------------------------------------------------------------------


def test_real_embedding_of_one_patch(data: Path) -> None:
    path = data / "features" / "gigapath" / "prov_normal_000_1.pt"
    bag = read_bag(path, width=1536)
    assert (bag.features.shape, bag.coords, bag.slide_id) == ((1, 1536), None, "prov_normal_000_1")
    assert peek_bag(path) == (1, 1536, None)


@pytest.mark.parametrize("key", ["features", "tile_embeds"])
def test_gigapath_s_dict_of_tensors(tmp_path: Path, key: str) -> None:
    bag = make_bag(25)
    path = tmp_path / "slide.pt"
    torch.save({key: bag.features, "coords": bag.coords}, path)
    with pytest.raises(BagError, match=r"GigaPath's files do not state the patch size.*--patch-size-level0"):
        read_bag(path)
    same(read_bag(path, patch_size_level0=256), bag)
    assert (layout_of(path), peek_bag(path)) == ("gigapath", (25, 16, None))


def test_gigapath_s_tile_names_are_coordinates(tmp_path: Path) -> None:
    bag = make_bag(25)
    assert bag.coords is not None
    names = [f"slide/{int(x):05d}x_{int(y):05d}y.png" for x, y in bag.coords.tolist()]
    torch.save({"features": bag.features, "tile_names": names}, tmp_path / "slide.pt")
    same(read_bag(tmp_path / "slide.pt", patch_size_level0=256), bag)
    torch.save({"features": bag.features, "tile_names": ["tile_7.png", *names[1:]]}, tmp_path / "bad.pt")
    with pytest.raises(BagError, match=r"tile name 0 is 'tile_7\.png'; expected <x>x_<y>y\.png"):
        read_bag(tmp_path / "bad.pt", patch_size_level0=256)


def test_gigapath_s_h5(tmp_path: Path) -> None:
    bag = make_bag(25)
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["features"], file["coords"] = bag.features.numpy(), bag.coords
    same(read_bag(tmp_path / "slide.h5", "gigapath", patch_size_level0=256), bag)
    assert peek_bag(tmp_path / "slide.h5", "gigapath") == (25, 16, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"embedding": torch.ones(2, 2)},
            r"found a dict of embedding; expected a dict with a tensor features or feats",
        ),
        ({"features": torch.ones(2, 2)}, r"no tensor 'coords' and no list 'tile_names'"),
        ([torch.ones(2, 2)], r"expected one tensor, found a list"),
        (torch.ones(2, 2, 2), r"'tensor' must be \[N, D\], got shape \(2, 2, 2\)"),
        (torch.ones(2, 2, dtype=torch.int64), r"'tensor' is torch\.int64; expected float16"),
    ],
)
def test_pt_files_of_something_else(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(BagError, match=message):
        read_bag(tmp_path / "x.pt", patch_size_level0=256)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_bare_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.randn(7, 3).to(dtype)
    torch.save(rows, tmp_path / "a.pt")
    torch.save(rows, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    save_file({"x": rows}, tmp_path / "c.safetensors")
    files = ["a.pt", "b.pt", "c.safetensors"]
    if dtype != torch.bfloat16:
        np.save(tmp_path / "d.npy", rows.numpy())
        files.append("d.npy")
    kept = torch.float16 if dtype == torch.float16 else torch.float32
    for name in files:
        bag = read_bag(tmp_path / name)
        assert torch.equal(bag.features, rows.to(kept)), name
        assert (bag.coords, peek_bag(tmp_path / name)) == (None, (7, 3, None)), name
    assert torch.equal(read_bag(tmp_path / "a.pt", "histgen").features, rows.to(kept))
    with pytest.raises(BagError, match=r"the histgen layout is a \.pt file"):
        read_bag(tmp_path / "c.safetensors", "histgen")


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    rows = torch.ones(3, 4)
    coords = torch.tensor([[0, 0], [256, 0], [512, 0]])
    np.save(tmp_path / "a", rows.numpy())
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    torch.save(rows, tmp_path / "B.PT")
    torch.save({"features": rows, "coords": coords}, tmp_path / "C.PT")
    bag = Bag(rows, coords, 256.0, "d")
    write_bag(tmp_path / "d.safetensors", bag, "tensors")
    (tmp_path / "d.safetensors").rename(tmp_path / "D.SAFETENSORS")
    write_clam(tmp_path / "clam", replace(bag, slide_id="e"))
    (tmp_path / "clam" / "pt_files" / "e.pt").rename(tmp_path / "clam" / "pt_files" / "e.PT")
    for name, size in (("A.NPY", None), ("B.PT", None), ("C.PT", 256), ("D.SAFETENSORS", None)):
        back = read_bag(tmp_path / name, patch_size_level0=size)
        assert (len(back), peek_bag(tmp_path / name)[:2], back.coords is None) == (3, (3, 4), name in ("A.NPY", "B.PT"))
    assert read_bag(tmp_path / "clam" / "pt_files" / "e.PT").patch_size_level0 == 256
    assert read_bag(tmp_path / "B.PT", "histgen").width == 4


def test_empty_slides(tmp_path: Path) -> None:
    for shape in ((0,), (0, 8)):
        torch.save(torch.zeros(shape), tmp_path / "x.pt")
        np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
        for name in ("x.pt", "x.npy"):
            assert len(read_bag(tmp_path / name, width=99)) == peek_bag(tmp_path / name)[0] == 0
    path = write_stamp(tmp_path / "s.h5", make_bag(0))
    assert len(read_bag(path, mpp=0.5)) == 0
    assert len(read_bag(write_clam(tmp_path, make_bag(0)))) == 0


@pytest.mark.parametrize("name", ["x.pt", "x.npy", "x.safetensors", "x.h5"])
def test_torn_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(torch.ones(50, 50), tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.ones((50, 50)))
    save_file({"x": torch.ones(50, 50)}, tmp_path / "x.safetensors")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = np.ones((50, 50))
    for left in (path.stat().st_size // 2, 3, 0):
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(BagError, match=name):
            read_bag(path)


def test_a_dataset_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file[b"caf\xe9"] = np.ones((2, 2))
    with pytest.raises(BagError, match=r"x\.h5: no dataset 'features' or 'feats' \(found: caf\\xe9\)"):
        read_bag(tmp_path / "x.h5")


def test_torn_safetensors_read_as_a_layout_of_pt_files(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    for layout in ("gigapath", "clam"):
        with pytest.raises(BagError, match=r"x\.safetensors"):
            read_bag(tmp_path / "x.safetensors", layout)


# SlideChat -------------------------------------------------------------------------------------------------------


def test_slidechat_s_csv(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 512))
    path = write_slidechat(tmp_path / "TCGA-XX.csv", rows)
    bag = read_bag(path)
    assert np.array_equal(bag.features.numpy(), rows.astype(np.float32))
    assert (bag.coords, bag.encoder, layout_of(path)) == (None, "conch_v1", "slidechat")
    assert peek_bag(path) == (9, 512, "conch_v1")


def test_slidechat_refusals(tmp_path: Path) -> None:
    path = write_slidechat(tmp_path / "s.csv", np.ones((3, 512)))
    lines = path.read_text().splitlines()
    for changed, message in (
        ([lines[0], lines[1], lines[2].replace("1.0", "one", 1)], "row 1, column 0 is 'one'; expected a number"),
        ([lines[0], lines[1].replace("1.0", "", 1)], r"features\[0, 0\] is nan"),
        (lines[1:], "no header row"),
    ):
        path.write_text("\n".join(changed))
        with pytest.raises(BagError, match=message):
            read_bag(path)
    (tmp_path / "labels.csv").write_text("slide_id,label\na,b\n")
    with pytest.raises(BagError, match="a table, but not of features"):
        read_bag(tmp_path / "labels.csv")
    with pytest.raises(BagError, match=r"2 columns; expected .*SlideChat's 512 features"):
        read_bag(tmp_path / "labels.csv", "slidechat")


# What every layout shares ----------------------------------------------------------------------------------------


def plain(path: Path, features: np.ndarray, coords: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, coords
        file["coords"].attrs["patch_size_level0"] = 256
        file["coords"].attrs["level0_width"] = 1000
        file["coords"].attrs["level0_height"] = 600
    return path


@pytest.mark.parametrize(
    ("features", "coords", "message"),
    [
        ([[1.0, np.nan]], [[0, 0]], r"features\[0, 1\] is nan"),
        ([[np.inf, 1.0]], [[0, 0]], r"features\[0, 0\] is inf"),
        ([[1e39, 1.0]], [[0, 0]], r"features\[0, 0\] is inf"),
        ([[1.0], [1.0]], [[0, 0]], r"2 rows of 'features' but 1 of 'coords'"),
        ([[1.0], [1.0]], [[0, 0], [0, 0]], r"coords\[1\] = \[0\.0, 0\.0\] is duplicated"),
        ([[1.0], [1.0]], [[0, 0], [-256, 0]], r"coords\[1\] = \[-256\.0, 0\.0\] is negative"),
        (
            [[1.0], [1.0]],
            [[0, 0], [1024, 0]],
            r"coords\[1\] = \[1024\.0, 0\.0\] is outside the slide of \(1000, 600\)",
        ),
        ([[1.0]], [[0, 0, 0]], r"'coords' must be \[N, 2\], got shape \(1, 3\)"),
    ],
)
def test_silent_bugs_of_the_field(
    tmp_path: Path, features: list[list[float]], coords: list[list[int]], message: str
) -> None:
    path = plain(tmp_path / "x.h5", np.array(features), np.array(coords))
    with pytest.raises(BagError, match=rf"x\.h5.*{message}"):
        read_bag(path)


def test_an_overhang_is_right(tmp_path: Path) -> None:
    bag = read_bag(plain(tmp_path / "x.h5", np.ones((2, 3)), np.array([[0, 0], [768, 512]])))
    assert bag.level0_size == (1000, 600)
    with pytest.raises(BagError, match=r"the file states a slide of \(1000, 600\).*another slide"):
        read_bag(tmp_path / "x.h5", level0_size=(1000, 601))


def test_what_the_features_must_be_of(tmp_path: Path) -> None:
    path = write_stamp(tmp_path / "s.h5", make_bag(5))
    assert read_bag(path, mpp=0.5, encoder="conch_v1.5", width=16).encoder == "mahmood-conch1_5"
    with pytest.raises(BagError, match=r"s\.h5: features of 'mahmood-conch1_5', expected 'uni2'"):
        read_bag(path, mpp=0.5, encoder="uni2")
    with pytest.raises(BagError, match=r"s\.h5: features have width 16, expected 768"):
        read_bag(path, mpp=0.5, width=768)


def test_what_is_no_feature_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    for name, message in (("x.txt", r"not the suffix of a feature file; expected one of \.h5"), ("", "a folder")):
        with pytest.raises(BagError, match=message):
            read_bag(tmp_path / name)
    save_file({"tokens": torch.ones(2, 2)}, tmp_path / "t.safetensors", {"abbe": "{}"})
    with pytest.raises(BagError, match="tokens written by `abbe condense`"):
        read_bag(tmp_path / "t.safetensors")
    for layout in LAYOUTS:
        with pytest.raises(BagError, match=r"x\.txt"):
            read_bag(tmp_path / "x.txt", layout)
    with pytest.raises(ConfigError, match="Did you mean 'stamp'"):
        read_bag(tmp_path / "x.txt", "stampp")


@pytest.mark.slow
def test_damage_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    """Bytes changed or cut off anywhere: whatever a library makes of it, the caller sees a BagError or a valid bag."""
    bag = make_bag(20)
    stamp, csv = write_stamp(tmp_path / "s.h5", bag), write_slidechat(tmp_path / "c.csv", np.ones((3, 512)))
    files = [write_clam(tmp_path, bag), tmp_path / "pt_files" / "slide.pt", stamp, csv, tmp_path / "n.npy"]
    np.save(tmp_path / "n.npy", bag.features.numpy())
    for name, layout in (("t.h5", "trident"), ("t.safetensors", "tensors")):
        write_bag(tmp_path / name, bag, layout)
        files.append(tmp_path / name)
    generator = np.random.default_rng(0)
    refused = 0
    for path in files:
        whole = path.read_bytes()
        for number in range(60):
            data = bytearray(whole)
            if number % 3 == 0:
                del data[generator.integers(len(data)) :]
            for at in generator.integers(min(len(data), 3000) or 1, size=8 if data else 0):
                data[at] = generator.integers(256)
            path.write_bytes(data)
            for read in (read_bag, peek_bag):
                try:
                    read(path, **({"mpp": 0.5} if read is read_bag else {}))
                except BagError as error:
                    assert str(path) in str(error)  # noqa: PT017
                    refused += 1
        path.write_bytes(whole)
    assert refused > 100
