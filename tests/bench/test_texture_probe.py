from __future__ import annotations

import csv
import hashlib
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.model_selection import StratifiedGroupKFold

from abbe.bench.labelled_patches import LabelledPatches, read_patches
from abbe.bench.probe import PENALTIES, TASKS, _right, colour_histogram, probe
from abbe.bench.robustness import CHANGES, GAINS, robustness, some_of_each_group
from abbe.console import progress
from abbe.errors import ConfigError, TableError
from abbe.verbs.bench_texture import BenchTexture

CLASSES = ("lung_aca", "lung_n", "lung_scc", "colon_aca", "colon_n")


def patch(cls: int, rng: np.random.Generator) -> np.ndarray:
    """Classes share their colours and differ in the period of their checks."""
    period = 2 ** (cls % 3)
    checks = (np.indices((32, 32)) // period).sum(axis=0) % 2
    colours = np.array([[200, 150, 190], [120, 60, 140]])
    return np.clip(colours[checks] + rng.integers(-8, 9, (32, 32, 3)), 0, 255).astype(np.uint8)


def made(folder: Path, *, groups: int = 12, size: int = 2) -> Path:
    """A folder as LC25000 is packed: a zip a class and index.csv, in which c10.png comes after c9.png."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number, cls in enumerate(CLASSES):
        with zipfile.ZipFile(folder / f"{cls}.zip", "w") as archive:
            for k in range(groups * size):
                path = folder / "patch.png"
                Image.fromarray(patch(number, rng)).save(path)
                archive.write(path, f"{cls}{k}.png")
                rows.append((cls, f"{cls}{k}.png", str(k // size), hashlib.sha256(path.read_bytes()).hexdigest()))
                path.unlink()
    with open(folder / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows([("class", "file", "group", "sha256"), *rows])
    return folder


def test_patches_are_read_in_the_order_of_the_index_from_folders_zips_and_one_zip(tmp_path):
    data = read_patches(made(tmp_path / "p"))
    assert data.patches.shape == (120, 32, 32, 3)
    assert list(dict.fromkeys(data.classes)) == list(CLASSES)
    assert len(set(data.groups)) == 60  # a group number belongs to its class
    assert set(data.sha256) == {"index.csv", *(f"{cls}.zip" for cls in CLASSES)}
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.write(tmp_path / "p" / "index.csv", "index.csv")
        for cls in CLASSES:
            with zipfile.ZipFile(tmp_path / "p" / f"{cls}.zip") as one:
                for name in one.namelist():
                    archive.writestr(f"{cls}/{name}", one.read(name))
    np.testing.assert_array_equal(read_patches(whole).patches, data.patches)


def test_what_is_missing_from_index_or_folder_is_refused(tmp_path):
    folder = made(tmp_path / "p", groups=1)
    with pytest.raises(TableError, match=r"no index\.csv"):
        read_patches(tmp_path)
    index = (folder / "index.csv").read_text()
    (folder / "index.csv").write_text(index + "colon_n,gone.png,9,00\n")
    with pytest.raises(TableError, match=r"line 12: colon_n/gone\.png is not among the given patches"):
        read_patches(folder)
    (folder / "index.csv").write_text(index.replace("group", "tile"))
    with pytest.raises(TableError, match="no column 'group'"):
        read_patches(folder)
    (folder / "index.csv").write_text(index.replace("\nlung_aca,", "\n,", 1))
    with pytest.raises(TableError, match=r"index\.csv, line 2: column 'class' is empty"):
        read_patches(folder)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.write(folder / "index.csv", "index.csv")
    with pytest.raises(TableError, match=r"whole\.zip/index\.csv, line 2"):
        read_patches(tmp_path / "whole.zip")


def test_broken_and_altered_patches_are_left_out_and_named(tmp_path):
    folder = made(tmp_path / "p", groups=2)
    whole = read_patches(folder)
    assert whole.left_out == {}
    (folder / "colon_n.zip").unlink()
    (folder / "colon_n").mkdir()
    rows = list(csv.reader((folder / "index.csv").read_text().splitlines()))
    torn = b"\x89PNG torn"
    for number, row in enumerate(rows[-4:]):
        image = torn if number == 0 else b"other"
        if number > 1:
            Image.fromarray(whole.patches[-4 + number]).save(folder / "patch.png")
            image = (folder / "patch.png").read_bytes()
            (folder / "patch.png").unlink()
        (folder / "colon_n" / row[1]).write_bytes(image)
    rows[-4][3] = hashlib.sha256(torn).hexdigest()
    with open(folder / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = read_patches(folder)
    assert set(data.left_out) == {"colon_n/colon_n0.png", "colon_n/colon_n1.png"}
    assert "cannot be decoded" in data.left_out["colon_n/colon_n0.png"]
    assert "altered" in data.left_out["colon_n/colon_n1.png"]
    keep = np.r_[:16, 18:20]
    np.testing.assert_array_equal(data.patches, whole.patches[keep])
    np.testing.assert_array_equal(data.classes, whole.classes[keep])
    np.testing.assert_array_equal(data.groups, whole.groups[keep])


def test_patches_of_several_sizes_are_refused(tmp_path):
    folder = tmp_path / "p"
    rows = ["class,file,group,sha256"]
    for size in (8, 9):
        (folder / f"c{size}").mkdir(parents=True)
        Image.new("RGB", (size, size)).save(folder / f"c{size}" / "a.png")
        rows.append(f"c{size},a.png,1,{hashlib.sha256((folder / f'c{size}' / 'a.png').read_bytes()).hexdigest()}")
    (folder / "index.csv").write_text("\n".join(rows))
    with pytest.raises(TableError, match=r"c9/a\.png has 9 x 9 pixels, expected 8 x 8; all patches must"):
        read_patches(folder)


def test_the_histogram_is_of_colours_alone():
    patches = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    rows = colour_histogram(patches)
    np.testing.assert_allclose((rows**2).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(colour_histogram(patches[:, ::-1]), rows)
    one = colour_histogram(np.full((1, 4, 4, 3), (255, 0, 32), np.uint8))[0]
    assert one[7 * 64 + 0 * 8 + 1] == 1


def ridge(rows: np.ndarray, codes: np.ndarray, asked: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge classification in closed form: standardised features, one least-squares fit per class, targets −1 and 1."""
    mean, spread = rows.mean(0), rows.std(0)
    spread[spread == 0] = 1
    x, targets = (rows - mean) / spread, np.eye(codes.max() + 1)[codes] * 2 - 1
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (targets - targets.mean(0)))
    return ((asked - mean) / spread @ weights + targets.mean(0)).argmax(1)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_ridge_with_the_penalty_that_inner_folds_choose(classes):
    """Worked out in closed form. Features differ in scale, so that a probe that does not standardise is found out."""
    rng = np.random.default_rng(classes)
    codes, groups = rng.integers(0, classes, 240), np.repeat(np.arange(60), 4)
    rows = rng.normal(0, 1, (240, 60)) * rng.uniform(0.1, 30, 60)
    rows[:, 0] = codes + rng.normal(0, 1, 240)
    rows[:, 1] = 7  # a feature that does not vary
    expected, chosen = np.zeros(240), []
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=3).split(rows, codes, groups):
        scores = np.zeros(len(PENALTIES))
        inner = StratifiedGroupKFold(4, shuffle=True, random_state=3).split(rows[train], codes[train], groups[train])
        for fit, held in inner:
            for number, penalty in enumerate(PENALTIES):
                right = ridge(rows[train[fit]], codes[train[fit]], rows[train[held]], penalty) == codes[train[held]]
                scores[number] += np.mean([right[codes[train[held]] == code].mean() for code in range(classes)])
        chosen.append(PENALTIES[int(scores.argmax())])
        expected[test] = ridge(rows[train], codes[train], rows[test], chosen[-1]) == codes[test]
    penalties: list[float] = []
    np.testing.assert_array_equal(_right(rows, codes, groups, 3, penalties), expected)
    assert penalties == chosen
    assert len(set(chosen)) > 1


@pytest.mark.slow
def test_a_probe_tells_informative_features_from_noise_and_keeps_groups_whole(tmp_path):
    data = read_patches(made(tmp_path / "p"))
    rng = np.random.default_rng(0)
    codes = np.unique(data.classes, return_inverse=True)[1]
    good = np.eye(5, dtype=np.float32)[codes] + rng.normal(0, 0.2, (120, 5)).astype(np.float32)
    # One number a group: memorised by a probe that splits groups, worth nothing to one that does not.
    leak = np.eye(60, dtype=np.float32)[np.unique(data.groups, return_inverse=True)[1]]
    with progress("probing", None) as bar:
        found = probe({"texture": good, "histogram": leak}, data, 1, bar)
    assert set(found) == set(TASKS)
    for task in found.values():
        assert task["texture"]["value"] > 0.9
        assert task["histogram"]["value"] < 0.7
        assert task["difference"]["value"] == pytest.approx(task["texture"]["value"] - task["histogram"]["value"])
        assert task["difference"]["low"] > 0
    lung = found["lung, 3 classes"]
    assert lung["texture"]["n"] == 72
    assert lung["texture"]["groups"] == 36
    assert lung["classes"] == dict.fromkeys(CLASSES[:3], 24)


class Brightness:
    """One feature: the mean of the patch."""

    name, width, patch_size, version = "brightness", 1, None, 1

    def __call__(self, patches):
        return patches.mean(axis=(1, 2, 3), dtype=np.float64)[:, None].astype(np.float32)


@pytest.mark.slow
def test_a_probe_loses_what_a_change_takes_and_nothing_else(monkeypatch):
    """Classes differ in brightness alone. What keeps it costs nothing; patches turned negative are all read wrongly."""
    shades = {"lung_aca": 60, "lung_n": 120, "lung_scc": 190, "colon_aca": 60, "colon_n": 190}
    rng = np.random.default_rng(0)
    classes = np.repeat(list(shades), 40)
    patches = np.stack([np.full((16, 16, 3), shades[name]) + rng.integers(-9, 10, (16, 16, 3)) for name in classes])
    groups = np.array([f"{name}/{number % 40 // 4}" for number, name in enumerate(classes)])
    data = LabelledPatches(patches.astype(np.uint8), classes, groups, {}, {})
    monkeypatch.setitem(CHANGES, "negative", lambda patch, _: 250 - patch)
    with progress("changing", None) as bar:
        found = robustness(Brightness(), Brightness()(data.patches), data, per_group=3, bar=bar)
    assert (found["patches"], found["per_group"]) == (150, 3)
    assert set(found["tasks"]) == set(TASKS)
    for task in found["tasks"].values():
        unchanged = task["unchanged"]["accuracy"]["value"]
        assert set(task) == {"unchanged", *CHANGES}
        for row in task.values():
            assert row["loss"]["value"] == pytest.approx(unchanged - row["accuracy"]["value"])
    for name in ("lung, adenocarcinoma or squamous", "colon, adenocarcinoma or normal"):
        task = found["tasks"][name]
        assert {change for change, row in task.items() if row["accuracy"]["value"] != 1} == {"negative"}
        assert task["negative"]["loss"]["value"] == 1
        assert task["negative"]["loss"]["groups"] == 20


def test_changes_do_what_their_names_say():
    rng = np.random.default_rng(0)
    patch = ndimage.gaussian_filter(rng.integers(0, 256, (64, 64, 3)).astype(float), (2, 2, 0)).astype(np.uint8)
    after = {name: change(patch, np.random.default_rng(1)).astype(float) for name, change in CHANGES.items()}
    assert all(values.shape == patch.shape for values in after.values())
    lost = {name: np.abs(values - patch).mean() for name, values in after.items()}
    assert 0 < lost["JPEG 90"] < lost["JPEG 75"] < lost["JPEG 50"]
    assert (after["noise 4"] - patch).std() == pytest.approx(4, abs=0.1)
    assert after["blur 0.7"].std() < patch.std()
    np.testing.assert_allclose(after["colour shift"], np.clip(patch * np.array(GAINS), 0, 255), atol=0.51)
    middle = np.zeros((64, 64, 3), np.uint8)
    middle[22:42, 22:42] = 255
    assert (CHANGES["scale 1.1"](middle, rng)[32, :, 0] > 127).sum() == 22


def test_some_patches_of_each_group_are_always_the_same_ones():
    groups = np.array(list("abcabcaab"))
    rows = some_of_each_group(groups, 2)
    assert sorted(groups[rows]) == ["a", "a", "b", "b", "c", "c"]
    np.testing.assert_array_equal(rows, np.unique(some_of_each_group(groups, 2)))
    assert len(some_of_each_group(groups, 9)) == 9


@pytest.mark.slow
def test_the_verb_writes_speed_and_probe(tmp_path, capsys):
    folder = made(tmp_path / "p")
    run = BenchTexture(patches=folder, repeats=1, results=tmp_path / "out", side=32, per_class=1, rounds=1)
    assert run.run() == 0
    assert "Linear probe on 120 patches of 32 pixels" in capsys.readouterr().out
    found = json.loads(next((tmp_path / "out").glob("*-texture.json")).read_text())
    assert found["probe"]["seeds"] == [0]
    task = found["probe"]["tasks"]["lung, 3 classes"]
    assert task["texture"]["value"] > task["histogram"]["value"] + 0.2
    assert found["per_second_wall"]["min"] > 0
    assert found["probe"]["robustness"]["patches"] == 120
    page = next((tmp_path / "out").glob("*-texture.md")).read_text()
    assert re.search(r"\| JPEG 50 \| \d\.\d{3} \(-?\d+\.\d \[", page)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="--repeats must be at least 1, got 0"):
        BenchTexture(repeats=0).run()
