"""A cohort of whole-slide images: slides follow the plan, truth is what was painted, runs are resumed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from PIL import Image

from abbe.phantom import writer
from abbe.phantom.layout import Layout
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import GLASS, TISSUE_CLASSES, site_stain
from abbe.phantom.scores import ceiling_scores, oracle_scores
from abbe.phantom.settings import BankPlan, CohortPlan
from abbe.phantom.writer import write_cohort, write_pixel_cohort
from abbe.store import commit
from abbe.verbs.cohort_phantom import PhantomCohort
from phantom.banks import BANK, random_bank

PLAN = CohortPlan(0.1, (2, 2, 2), 16, seed=1)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pixels")
    assert PhantomCohort(folder, PLAN, "pixels", BANK, workers=2).run() == 0
    return folder


@pytest.fixture(scope="module")
def labels(out) -> pd.DataFrame:
    return pd.read_csv(out / "labels.csv", keep_default_na=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_every_slide_opens_and_its_truth_agrees_with_labels(out, labels):
    truth = pd.read_parquet(out / "truth" / "patches.parquet")
    assert "bank_row" not in truth
    for label in labels.itertuples():
        painted = np.array(Image.open(out / "truth" / f"{label.slide_id}.png"))
        with openslide.OpenSlide(str(out / "slides" / f"{label.slide_id}.tiff")) as slide:
            assert slide.dimensions == (256 * painted.shape[1], 256 * painted.shape[0])
        assert label.n_patches == (painted != GLASS).sum()
        patches = truth[truth["slide_id"] == label.slide_id]
        np.testing.assert_array_equal(painted[patches["y"], patches["x"]], patches["class"])
        purity = json.loads((out / "truth" / f"{label.slide_id}.json").read_text())["purity"]
        np.testing.assert_allclose(np.array(purity)[patches["y"], patches["x"]], patches["purity"], atol=1e-6)
        assert 1 >= patches["purity"].max() > 0.9 > patches["purity"].min() > 0
        tumour = patches["class"] == TISSUE_CLASSES.index(f"tumour_{label.subtype}{label.grade}")
        assert label.evidence_fraction == pytest.approx(tumour.mean(), abs=1e-6)
        assert tumour.sum() >= 1
    ids = labels["slide_id"].tolist()
    np.testing.assert_array_equal(oracle_scores(out, ids) > 0, labels["label"] == "b")
    with pytest.raises(ValueError, match="another plan"):
        ceiling_scores(out, random_bank(), ids)


@pytest.mark.slow
def test_they_are_the_slides_of_the_feature_cohort(out, labels, tmp_path):
    write_cohort(tmp_path, PLAN, random_bank(), texts=True)
    others = pd.read_csv(tmp_path / "labels.csv", keep_default_na=False)
    same = ["slide_id", "case_id", "site", "split", "task", "label", "subtype", "grade", "metastasis"]
    pd.testing.assert_frame_equal(labels[same], others[same])
    layouts = pd.read_parquet(tmp_path / "truth" / "patches.parquet").astype({"slide_id": str})
    painted = pd.read_parquet(out / "truth" / "patches.parquet").astype({"slide_id": str})
    both = layouts.merge(painted, on=["slide_id", "x", "y"], how="outer")
    assert (both["class_x"] == both["class_y"]).mean() > 0.9
    assert {"reports.csv", "questions.csv"} <= set(json.loads((out / "cohort.json").read_text())["texts"])


@pytest.mark.slow
def test_it_is_resumed_slide_by_slide(out, monkeypatch):
    before = contents(out)
    rendered = []
    real = writer.write_phantom_slide
    monkeypatch.setattr(writer, "write_phantom_slide", lambda *a, **k: rendered.append(a[1]) or real(*a, **k))
    write_pixel_cohort(out, PLAN, BANK, texts=True, workers=1)
    assert rendered == []
    (out / "cohort.json").unlink()
    (out / "truth" / "val-0001.json").unlink()
    path = out / "slides" / "train-0001.tiff"
    path.write_bytes(path.read_bytes()[:-9])
    write_pixel_cohort(out, PLAN, BANK, texts=True, workers=1)
    assert rendered == ["train-0001", "val-0001"]
    assert contents(out) == before
    assert all(commit.is_done(path) for path in out.rglob("*") if path.is_file() and ".sha256.json" not in path.name)


@pytest.mark.slow
def test_pixels_and_features_do_not_share_a_folder(out):
    with pytest.raises(ValueError, match="level is 'pixels' there and 'features' here"):
        write_cohort(out, PLAN, random_bank())
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        write_pixel_cohort(out, PLAN, BankPlan(sites=2, seed=1))


@pytest.mark.slow
def test_memory_is_that_of_rows_of_tiles(tmp_path):
    """Four times the height takes no more memory, though one level below alone would add a tenth."""

    def peak(rows: int) -> int:
        layout = Layout(np.full((rows, 16), 2, np.uint8))
        tracemalloc.start()
        write_phantom_slide(tmp_path, f"h{rows}", layout, stain=site_stain(0, 0, 0), seed=0, patch_size=128)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    short, tall = peak(16), peak(64)
    assert tall < short + 1_000_000
    assert 2048 * 8192 * 3 // 16 > 3 * 1_000_000  # what holding the second level would have added
