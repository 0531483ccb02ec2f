"""Rendered patches compared with real ones: the montage, and the accuracy of the probe."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from abbe.data.labelled_images import LabelledImage
from abbe.phantom.realism import FOLDS, _sampled, montage, probe_accuracy
from abbe.phantom.settings import RealismSettings
from abbe.verbs.cohort_realism import Realism


def test_the_probe_separates_different_features_and_is_at_chance_for_equal_ones():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 8)).astype(np.float32)
    real = np.repeat([0, 1], 100)
    groups = np.arange(200).astype(str)
    assert 0.3 < probe_accuracy(features, real, groups, seed=0) < 0.7
    features[real == 1, 3] += 30
    assert probe_accuracy(features, real, groups, seed=0) == 1


def test_a_group_does_not_help_itself():
    """Rows are equal within a group and random otherwise: only a probe trained on the group could be right."""
    rng = np.random.default_rng(1)
    features = np.repeat(rng.standard_normal((20, 64)), 10, axis=0).astype(np.float32)
    real, groups = np.repeat([0, 1], 100), np.repeat(np.arange(20), 10).astype(str)
    assert probe_accuracy(features, real, groups, seed=0) < 0.8
    assert probe_accuracy(features, real, np.arange(200).astype(str), seed=0) == 1


def test_the_montage_has_each_patch_in_its_place():
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, 200, (16, 16, 3), dtype=np.uint8) for _ in range(3)] for _ in range(2)]
    drawn = np.asarray(Image.open(io.BytesIO(montage(rows))))
    assert drawn.shape == (36, 56, 3)
    np.testing.assert_array_equal(drawn[20:36, 40:56], rows[1][2])
    np.testing.assert_array_equal(drawn[:16, 20:36], rows[0][1])
    assert (drawn[16:20] == 255).all()


@pytest.mark.slow
def test_the_command_writes_montage_and_record(tmp_path, capsys):
    (tmp_path / "tiles" / "noise").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(10):
        pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "tiles" / "noise" / f"{number}.png")
    (tmp_path / "tiles" / "noise" / "sub").mkdir()
    (tmp_path / "tiles" / "noise" / "sub" / "1.png").write_bytes(b"")
    verb = Realism(
        patches=(tmp_path / "tiles",), out=tmp_path / "out", classes=("noise",), per_group=1, sites=1, patch_size=64
    )
    assert verb.run() == 0
    said = capsys.readouterr().out
    assert "balanced accuracy" in said
    assert "skipped images of other classes: sub (1)" in said
    record = json.loads((tmp_path / "out" / "realism.json").read_text())
    assert record["patches"] == record["groups"] == {"rendered": 36, "real": 10}
    assert record["balanced_accuracy"] > 0.9
    for name, rows in (("phantom-and-real", 2), ("phantom", 1)):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.size == (8 * 68 - 4, rows * 68 - 4)
    (tmp_path / "tiles" / "noise" / "3.png").write_bytes(b"torn")
    assert (
        Realism(
            patches=(tmp_path / "tiles",), out=tmp_path / "out", classes=("noise",), per_group=1, sites=1, patch_size=64
        ).run()
        == 1
    )
    assert set(json.loads((tmp_path / "out" / "realism.json").read_text())["broken"]) == {"noise/3.png"}


def test_the_same_images_are_chosen_in_another_folder(tmp_path):
    chosen = []
    for folder in ("one", "another/place"):
        run = RealismSettings(patches=(tmp_path / folder,), out=tmp_path, per_group=3)
        images = [LabelledImage(tmp_path / folder, f"c/{n}.png", "c", str(n % 2)) for n in range(40)]
        chosen.append([image.file for image in _sampled(run, images)])
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 6
    assert chosen[0] != sorted(chosen[0])


def test_too_few_real_patches_are_refused(tmp_path):
    (tmp_path / "tiles" / "noise").mkdir(parents=True)
    for number in range(FOLDS - 1):
        Image.new("RGB", (16, 16)).save(tmp_path / "tiles" / "noise" / f"{number}.png")
    with pytest.raises(ValueError, match="4 real patches of 4 groups are too few; at least 8 patches of 5 groups"):
        Realism(
            patches=(tmp_path / "tiles",), out=tmp_path / "out", classes=("noise",), per_group=1, sites=1, patch_size=16
        ).run()
    with pytest.raises(ValueError, match="--per-group must be at least 1, got 0"):
        Realism(
            patches=(tmp_path / "tiles",), out=tmp_path / "out", classes=("noise",), per_group=0, sites=1, patch_size=16
        ).run()
