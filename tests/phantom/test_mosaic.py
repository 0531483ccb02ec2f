"""Mosaics: groups never serve two splits, five splits have disjoint tests, and unusable files are named."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from abbe.data import SPLITS
from abbe.data import labelled_images as labelled
from abbe.data.labelled_images import find_images
from abbe.data.labels import read_labels
from abbe.phantom import bank as bank_module
from abbe.phantom import mosaic as module
from abbe.phantom.mosaic import build_mosaic_bank
from abbe.phantom.scores import ceiling_scores, oracle_scores
from abbe.phantom.settings import CohortPlan, MosaicBankPlan
from abbe.phantom.writer import write_cohort
from abbe.slides.patch_encoders.texture import TextureEncoder
from abbe.store.bags import read_bag
from abbe.verbs.cohort_mosaic import MosaicCohort

SIDE = 64
GROUPS = 7  # of each class, two images each
CLASSES = ("other", "one", "two")
PLAN = MosaicBankPlan(a="one", b="two", rest=("other",), patch_size=SIDE)


def image(cls: str, number: int, side: int = SIDE) -> bytes:
    """Noise around a colour of the class."""
    rng = np.random.default_rng([CLASSES.index(cls), number])
    middle = np.array([[200, 160, 190], [150, 90, 160], [190, 110, 120]])[CLASSES.index(cls)]
    pixels = np.clip(rng.normal(middle, 25, (side, side, 3)), 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> Path:
    """A zip, a folder, a class that is not used, and an index."""
    folder = tmp_path_factory.mktemp("patches")
    rows = []
    for cls in CLASSES:
        names = {f"{number}.png": image(cls, number) for number in range(2 * GROUPS)}
        rows += [{"class": cls, "file": f"{number}.png", "group": str(number // 2)} for number in range(2 * GROUPS)]
        if cls == "one":
            with zipfile.ZipFile(folder / "one.zip", "w") as file:
                for name, data in names.items():
                    file.writestr(name, data)
        else:
            (folder / cls).mkdir()
            for name, data in names.items():
                (folder / cls / name).write_bytes(data)
    (folder / "unasked").mkdir()
    (folder / "unasked" / "1.png").write_bytes(image("one", 99))
    pd.DataFrame(rows).to_csv(folder / "index.csv", index=False)
    return folder


def plan_of(patches: Path, **changes) -> MosaicBankPlan:
    return replace(PLAN, patches=(str(patches),), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def rows(patches, folder):
    return build_mosaic_bank(plan_of(patches), folder, workers=1)


def test_rows_are_the_encoded_patches(rows, patches, folder):
    assert rows.features.shape == (6 * GROUPS, TextureEncoder.width)
    assert rows.classes.names == CLASSES
    assert (rows.filling, rows.mpp, rows.patch_size, rows.sites, rows.settings) == ("mosaic", None, SIDE, 1, 1)
    first = np.asarray(Image.open(patches / "other" / "0.png"))
    np.testing.assert_array_equal(rows.features[0], TextureEncoder()(first[None])[0])
    record = json.loads((folder / "bank.json").read_text())
    assert record["patches"] == dict.fromkeys(CLASSES, 2 * GROUPS)
    assert record["other_classes"] == {"unasked": 1}
    assert record["groups_from"] == "index.csv"
    assert record["broken"] == {}


def test_groups_stay_whole_and_the_five_tests_are_disjoint(rows, patches, folder, monkeypatch):
    monkeypatch.setattr(module, "_encode_images", None)  # one folder serves all splits
    tested = []
    for split in range(5):
        bank = build_mosaic_bank(plan_of(patches, split=split), folder)
        of_group = pd.DataFrame({"group": bank.group, "split": bank.split}).groupby("group")["split"].nunique()
        assert (of_group == 1).all()
        for cls in range(3):
            assert {0, 1, 2} == set(bank.split[bank.cls == cls])
        tested.append(set(bank.group[bank.split == SPLITS.index("test")]))
    assert sum(map(len, tested)) == len(set.union(*tested)) == GROUPS


def test_a_group_is_the_same_in_every_class(rows):
    """Tumour and normal patches of one patient are one group in one split."""
    for group in range(GROUPS):
        here = rows.group == group
        assert set(rows.cls[here]) == {0, 1, 2}
        assert len(set(rows.split[here])) == 1


def test_a_mosaic_cohort_has_the_files_of_every_cohort(rows, tmp_path):
    record = write_cohort(tmp_path, CohortPlan(0.1, (6, 3, 5), 40), rows)
    assert record["filling"] == "mosaic"
    assert record["features"] == f"mosaic_{SIDE}px_0px_overlap/features_texture"
    groups = {name: 2 * len(set(rows.group[rows.split == SPLITS.index(name)])) for name in ("train", "test")}
    assert record["difficulty"]["probe_a_b_groups"] == groups
    assert record["difficulty"]["probe_a_b"] == 1  # colours far apart
    labels = read_labels(tmp_path / "labels.csv", require_split=True)
    assert set(labels["label"]) == {"a", "b"}
    assert set(labels["grade"]) == set(labels["til_pattern"]) == set(labels["metastasis"]) == {""}
    truth = pd.read_parquet(tmp_path / "truth" / "patches.parquet").astype({"slide_id": str})
    truth = truth.merge(labels[["slide_id", "split", "label"]], on="slide_id")
    np.testing.assert_array_equal(rows.split[truth["bank_row"]], truth["split"].map(SPLITS.index))
    np.testing.assert_array_equal(rows.cls[truth["bank_row"]], truth["class"])
    tumour = truth[truth["class"] > 0]
    np.testing.assert_array_equal(tumour["class"], tumour["label"].map({"a": 1, "b": 2}))
    bag = read_bag(tmp_path / record["features"] / "test-0000.h5")
    assert (bag.patch_size_level0, bag.mpp) == (SIDE, None)
    ids = labels["slide_id"].tolist()
    np.testing.assert_array_equal(oracle_scores(tmp_path, ids) > 0, labels["label"] == "b")
    assert np.isfinite(ceiling_scores(tmp_path, rows, ids)).all()


def copy_of(patches: Path, folder: Path) -> Path:
    for path in patches.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(patches)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def test_the_command_names_broken_patches_and_exits_with_1(patches, tmp_path, capsys):
    copy = copy_of(patches, tmp_path / "copy")
    (copy / "two" / "3.png").write_bytes(image("two", 3)[:200])
    (copy / "two" / "5.png").write_bytes(b"no picture")
    plan = CohortPlan(0.1, (2, 2, 2), 16)
    verb = MosaicCohort((copy,), tmp_path / "out", plan, PLAN, workers=1)
    assert verb.run() == 1
    said = capsys.readouterr().out
    assert "6 mosaics in" in said
    assert "left out: two/3.png: cannot be decoded" in said
    assert "left out: two/5.png: cannot be decoded (unknown image format)\n" in said
    assert "skipped images of other classes: unasked (1)\n" in said
    assert replace(verb, json=True).run() == 1
    record = json.loads(capsys.readouterr().out)
    assert set(record["broken"]) == {"two/3.png", "two/5.png"}
    assert record["other_classes"] == {"unasked": 1}
    assert json.loads((tmp_path / "out" / "cohort.json").read_text())["slides"] == record["slides"] == 6
    whole = replace(verb, patches=(patches,), out=tmp_path / "whole")
    assert whole.run() == 0


def test_folders_and_zips_are_read_alike(patches, tmp_path):
    """The class is the image's folder, at any depth; for images directly in a source, the name of the source."""
    tree = copy_of(patches / "two", tmp_path / "two" / "deep" / "one")
    (tree / "sub").mkdir()
    (tree / "sub" / "9.png").write_bytes(b"")
    (tmp_path / "two" / "0.png").write_bytes(b"")
    (tmp_path / "two" / "loop").symlink_to(tmp_path)
    (tmp_path / "two" / "linked").symlink_to(patches / "other")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        for name in labelled._members(tmp_path / "two"):
            file.write(tmp_path / "two" / name, name)
    found = [find_images([tmp_path / name], ("one", "two"), None) for name in ("two", "two.zip")]
    named = [([(image.cls, image.member) for image in images], others) for images, others in found]
    assert named[0] == named[1]
    assert ("two", "0.png") in named[0][0]
    assert len(named[0][0]) == 2 * GROUPS + 1
    assert named[0][1] == {"sub": 1, "linked": 2 * GROUPS}


def test_zips_in_subfolders_are_read_too(patches, tmp_path):
    (tmp_path / "given" / "deep").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "given" / "deep" / "one.zip", "w") as file:
        file.write(patches / "other" / "0.png", "0.png")
    images, _ = find_images(labelled.expand([tmp_path / "given"]), ("one",), None)
    assert [image.name for image in images] == ["one/0.png"]


def test_class_folders_may_be_given_themselves(rows, patches, tmp_path):
    given = tuple(str(patches / name) for name in ("other", "one.zip", "two"))
    again = build_mosaic_bank(replace(PLAN, patches=given), tmp_path / "bank", workers=1)
    np.testing.assert_array_equal(again.features, rows.features)
    np.testing.assert_array_equal(again.cls, rows.cls)


def test_sources_without_images_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"no image of class 'other' in .* No images were found"):
        build_mosaic_bank(plan_of(tmp_path), tmp_path / "bank", workers=1)


def test_a_file_twice_in_a_class_is_named_with_both_places(patches, tmp_path):
    for part in ("a", "b"):
        copy_of(patches / "two", tmp_path / part / "two")
    with pytest.raises(ValueError, match=r"two/0\.png is duplicated \(.*: a/two/0\.png and .*: b/two/0\.png\)"):
        find_images([tmp_path], ("two",), None)


def test_the_encoder_is_built_once(patches, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(bank_module, "create_patch_encoder", lambda name: built.append(name) or TextureEncoder())
    monkeypatch.setattr(module, "_BATCH", 5)
    build_mosaic_bank(plan_of(patches), tmp_path, workers=1)
    assert built == ["texture"]


def test_classes_with_too_few_groups_are_refused(patches, tmp_path):
    copy = copy_of(patches, tmp_path / "copy")
    table = pd.read_csv(copy / "index.csv")
    table.loc[table["class"] == "two", "group"] %= 4
    table.to_csv(copy / "index.csv", index=False)
    with pytest.raises(ValueError, match=r"class 'two' has 4 groups.*5 parts"):
        build_mosaic_bank(plan_of(copy), tmp_path / "bank", workers=1)


def test_another_size_is_refused_or_resampled_by_rule(patches, tmp_path):
    copy = copy_of(patches, tmp_path / "copy")
    (copy / "two" / "0.png").write_bytes(image("two", 0, side=100))
    with pytest.raises(ValueError, match=r"two/0\.png has 100 x 100 pixels, expected 64 x 64; .*--bank\.resize"):
        build_mosaic_bank(plan_of(copy), tmp_path / "bank", workers=1)
    assert not (tmp_path / "bank" / "bank.json").exists()
    bank = build_mosaic_bank(plan_of(copy, resize=True), tmp_path / "bank", workers=1)
    assert len(bank.cls) == 6 * GROUPS
    Image.new("RGB", (64, 80)).save(copy / "two" / "0.png")
    with pytest.raises(ValueError, match=r"two/0\.png has 64 x 80 pixels.*crop it to a square first"):
        build_mosaic_bank(plan_of(copy, resize=True), tmp_path / "bank2", workers=1)


def test_a_bank_of_other_patches_or_options_is_refused(rows, patches, folder, tmp_path):
    with pytest.raises(ValueError, match="patch_size is 64 there and 32 here"):
        build_mosaic_bank(plan_of(patches, patch_size=32), folder)
    copy = copy_of(patches, tmp_path / "copy")
    Image.new("RGB", (64, 64)).save(copy / "two" / "0.png")
    with pytest.raises(ValueError, match="made with other settings"):
        build_mosaic_bank(plan_of(copy), folder)


def test_an_altered_file_is_left_out_by_name(patches, tmp_path):
    copy = copy_of(patches, tmp_path / "copy")
    table = pd.read_csv(copy / "index.csv").assign(sha256="")
    table.loc[table["class"].eq("two") & table["file"].eq("4.png"), "sha256"] = "0" * 64
    table.to_csv(copy / "index.csv", index=False)
    bank = build_mosaic_bank(plan_of(copy), tmp_path / "bank", workers=1)
    assert len(bank.cls) == 6 * GROUPS - 1
    broken = json.loads((tmp_path / "bank" / "bank.json").read_text())["broken"]
    assert broken == {"two/4.png": "sha256 does not match the index; the file was altered"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("row missing", r"index\.csv: no row for two/0\.png and 0 more images"),
        ("file missing", r"index\.csv, line 30: two/0\.png is not among the given patches"),
        ("row twice", r"index\.csv, line 44: two/0\.png is duplicated"),
        ("no group", r"column 'group' is empty"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(change, words, patches, tmp_path):
    copy = copy_of(patches, tmp_path / "copy")
    table = pd.read_csv(copy / "index.csv", dtype=str)
    row = table["class"].eq("two") & table["file"].eq("0.png")
    if change == "row missing":
        table = table[~row]
    elif change == "file missing":
        (copy / "two" / "0.png").unlink()
    elif change == "row twice":
        table = pd.concat([table, table[row]])
    else:
        table.loc[row, "group"] = ""
    table.to_csv(copy / "index.csv", index=False)
    with pytest.raises(ValueError, match=words):
        build_mosaic_bank(plan_of(copy), tmp_path / "bank", workers=1)


def test_without_an_index_each_patch_is_a_group(patches, tmp_path):
    copy = copy_of(patches, tmp_path / "copy")
    (copy / "index.csv").unlink()
    bank = build_mosaic_bank(plan_of(copy), tmp_path / "bank", workers=1)
    assert len(np.unique(bank.group)) == 6 * GROUPS
    assert "its own group" in json.loads((tmp_path / "bank" / "bank.json").read_text())["groups_from"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": "two"}, "must name different classes"),
        ({"rest": ()}, "at least one each"),
        ({"split": 5}, "--bank.split must be 0 to 4, got 5"),
        ({"patch_size": 8}, "--bank.patch-size must be at least 16, got 8"),
        ({"mpp": 0.0}, "mpp must be positive"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_invalid_plans_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        replace(PLAN, **values)


def test_invalid_sources_are_refused(patches, tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        build_mosaic_bank(plan_of(patches / "index.csv"), tmp_path)
    with pytest.raises(ValueError, match="no patches given"):
        build_mosaic_bank(PLAN, tmp_path)
    with pytest.raises(ValueError, match=r"no image of class 'onne' .* Did you mean 'one'"):
        build_mosaic_bank(plan_of(patches, a="onne"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_mosaic_of_real_tiles(data, tmp_path):
    """A few groups of LC25000: encoded, laid out, and read by the probe far better than chance."""
    table = pd.read_csv(data / "patches" / "lc25000" / "index.csv", dtype=str)
    table = table[table["class"].str.startswith("lung") & (table["group"].astype(int) < 10)]
    table = table.groupby(["class", "group"]).head(4)
    for cls, files in table.groupby("class")["file"]:
        (tmp_path / "tiles" / cls).mkdir(parents=True)
        with zipfile.ZipFile(data / "patches" / "lc25000" / f"{cls}.zip") as file:
            for name in files:
                (tmp_path / "tiles" / cls / name).write_bytes(file.read(name))
    table.to_csv(tmp_path / "tiles" / "index.csv", index=False)
    bank = build_mosaic_bank(MosaicBankPlan((str(tmp_path / "tiles"),)), tmp_path / "bank", workers=1)
    record = write_cohort(tmp_path / "out", CohortPlan(0.1, (4, 2, 4), 40), bank)
    assert record["difficulty"]["probe_all_classes"] > 0.5
    assert len(bank.cls) == len(table)
