"""`abbe convert --slide`: what a feature file does not say, its slide does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import abbe
from abbe import cli
from abbe.store.bags import write_bag
from builders import make_bag


@pytest.fixture
def stamp(tmp_path: Path) -> Path:
    """A STAMP file: micrometres, and no mpp."""
    bag = make_bag(8, slide_id="cmu-1-small-region")
    write_bag(tmp_path / "stamp" / "cmu-1-small-region.h5", bag, "stamp")
    return tmp_path / "stamp"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict]:
    code = cli.run(["convert", *map(str, words), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    return code, row


@pytest.mark.slow
def test_micrometres_without_mpp_are_refused_and_supplied_by_the_slide(
    tmp_path: Path, data: Path, stamp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, row = run(capsys, stamp, "--out", tmp_path / "out")
    assert (code, row["outcome"]) == (1, "failed")
    assert "--override-mpp" in row["reason"]
    code, row = run(capsys, stamp, "--out", tmp_path / "out", "--slide", data / "slides")
    assert (code, row["outcome"]) == (0, "done")
    bag = abbe.read_bag(tmp_path / "out" / "cmu-1-small-region.h5")
    # 128 µm of STAMP are 256.5 pixels of this slide's 0.499 µm.
    assert bag.patch_size_level0 == pytest.approx(128 / 0.499, rel=1e-3)
    assert bag.mpp == pytest.approx(0.499)
    assert bag.level0_size == (2220, 2967)
    assert bag.coords is not None
    assert bag.coords[1].tolist() == pytest.approx([128 / 0.499, 0], rel=1e-3)


def test_what_is_no_regular_file_or_too_slow_is_a_row(
    tmp_path: Path, data: Path, stamp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slides").mkdir()
    os.mkfifo(tmp_path / "slides" / "cmu-1-small-region.svs")
    code, row = run(capsys, stamp, "--out", tmp_path / "out", "--slide", tmp_path / "slides")
    assert (code, row["outcome"]) == (1, "failed")
    assert "cmu-1-small-region.svs: not a regular file" in row["reason"]
    monkeypatch.setattr("abbe.slides.facts._TIME_LIMIT", 0.001)
    code, row = run(capsys, stamp, "--out", tmp_path / "out", "--slide", data / "slides")
    assert "its size could not be read within 0.001 s" in row["reason"]


def test_a_slide_that_is_not_there_or_says_nothing_is_a_row_of_its_own(
    tmp_path: Path, data: Path, stamp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    code, row = run(capsys, stamp, "--out", tmp_path / "out", "--slide", other)
    assert (code, row["outcome"]) == (1, "failed")
    assert "no slide called 'cmu-1-small-region' among the 1 found" in row["reason"]
    (stamp / "cmu-1-small-region.h5").rename(stamp / "tcga-cr-7395-01a-01-ts1.h5")
    code, row = run(capsys, stamp, "--out", tmp_path / "out", "--slide", other)
    assert (code, row["outcome"]) == (1, "failed")
    assert "--override-mpp" in row["reason"]
