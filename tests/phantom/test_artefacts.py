from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from abbe.errors import InputError
from abbe.phantom.artefacts import KINDS, ArtefactRows, add_artefacts, encode_artefacts, with_artefact
from abbe.phantom.render.tissue import TISSUE_CLASSES, render, site_stain
from abbe.store.bags import read_bag, write_bag
from builders import make_bag


@pytest.fixture(scope="module")
def patch() -> np.ndarray:
    return render(0, 0, 128, 128, TISSUE_CLASSES.index("gland"), stain=site_stain(0, 0, 0), seed=1)


def sharpness(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


def test_out_of_focus_is_blurred_and_keeps_its_colour(patch):
    blurred = with_artefact(patch, "out of focus", np.random.default_rng(0))
    assert sharpness(blurred) < 0.5 * sharpness(patch)
    assert np.abs(blurred.mean((0, 1)) - patch.mean((0, 1))).max() < 2


def test_a_fold_lets_less_light_through_everywhere(patch):
    folded = with_artefact(patch, "fold", np.random.default_rng(0))
    assert (folded <= patch).all()
    assert folded.mean() < patch.mean() - 10


def test_pen_covers_a_band_with_its_ink(patch):
    marked = with_artefact(patch, "pen", np.random.default_rng(0))
    changed = (marked != patch).any(2).mean()
    assert 0.3 < changed <= 1
    assert marked.shape == patch.shape
    assert marked.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_artefact(patch, kind):
    first, second, other = (with_artefact(patch, kind, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert (first == second).all()
    assert (first != other).any()


def test_an_unknown_kind_is_refused(patch):
    with pytest.raises(InputError, match="unknown kind 'bubble'; expected one of out of focus, pen, fold"):
        with_artefact(patch, "bubble", np.random.default_rng(0))


def test_rows_keep_their_split(patch):
    rows = encode_artefacts([[patch] * 3, [patch], [patch] * 2], encoder="texture", seed=0)
    assert rows.split.tolist() == [0, 0, 0, 1, 2, 2]
    assert rows.features.shape == (6, 256)
    assert (rows.features[0] != rows.features[1]).any()


@pytest.fixture
def cohort(tmp_path):
    """Three slides of 20 patches, the first four of each evidence (class 7)."""
    for name in ("train-0", "val-0", "test-0"):
        write_bag(tmp_path / "features" / f"{name}.h5", make_bag(20, dim=4, slide_id=name))
    names = ["train-0", "val-0", "test-0"]
    pd.DataFrame({"slide_id": names, "split": ["train", "val", "test"]}).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "truth").mkdir()
    classes = [7] * 4 + [0] * 16
    pd.concat(pd.DataFrame({"slide_id": name, "class": classes}) for name in names).to_parquet(
        tmp_path / "truth" / "patches.parquet"
    )
    return tmp_path


def constant_rows() -> ArtefactRows:
    """Every artefact of split s is 100 + s everywhere."""
    split = np.repeat(np.arange(3), 2)
    return ArtefactRows((100.0 + split)[:, None].repeat(4, 1).astype(np.float32), split, "test")


def added(cohort, make=constant_rows, share=0.25):
    return add_artefacts(cohort, cohort / "features", cohort / "out", make, evidence=[7], share=share, seed=0)


def test_a_quarter_is_replaced_never_the_evidence_and_from_the_slide_s_own_split(cohort):
    where = added(cohort)
    for split, name in enumerate(("train-0", "val-0", "test-0")):
        rows = where.loc[where["slide_id"] == name, "row"].to_numpy(copy=True)
        before, after = (read_bag(cohort / place / f"{name}.h5").features for place in ("features", "out"))
        assert len(rows) == 5
        assert rows.min() >= 4
        assert (after[rows] == 100 + split).all()
        kept = np.setdiff1d(np.arange(20), rows)
        assert (after[kept] == before[kept]).all()


def test_what_is_there_is_read_back_and_another_share_refused(cohort):
    first = added(cohort)

    def never() -> ArtefactRows:
        raise AssertionError("made again")

    assert added(cohort, never).equals(first)
    with pytest.raises(InputError, match=r"share is 0\.25 there and 0\.5 here"):
        added(cohort, share=0.5)


def test_more_artefacts_than_patches_without_evidence_are_refused(cohort):
    with pytest.raises(InputError, match="train-0: 18 artefacts do not fit into 16 patches without evidence"):
        added(cohort, share=0.9)
