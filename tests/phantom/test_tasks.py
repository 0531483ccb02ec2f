"""The mixture and spatial tasks: exact counts, labels that depend on the evidence alone, a perfect oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from abbe.errors import StoreError
from abbe.phantom import writer
from abbe.phantom.bank import PatchBank
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.layout import Layout
from abbe.phantom.plan import PlannedSlide, necrosis_shares, patients
from abbe.phantom.render.tissue import GLASS, TISSUE_CLASSES
from abbe.phantom.scores import ceiling_scores, oracle_scores
from abbe.phantom.settings import LABELS, CohortPlan
from abbe.phantom.tasks import largest_deposit, mixture_layout, spatial_layout, spatial_score, til_pattern
from abbe.phantom.writer import features_folder, write_cohort
from abbe.store import commit
from abbe.store.bags import read_bag
from phantom.banks import random_bank

STROMA, LYMPHOCYTES, NECROSIS, A2 = (
    TISSUE_CLASSES.index(name) for name in ("stroma", "lymphocytes", "necrosis", "tumour_a2")
)
TASKS = ("needle", "mixture", "spatial")


def plan_of(task: str) -> CohortPlan:
    return CohortPlan(0.03, (12, 6, 12), 300, seed=2, task=task)


@pytest.fixture(scope="module")
def rows() -> PatchBank:
    return random_bank()


@pytest.fixture(scope="module")
def cohorts(rows, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        write_cohort(folder / task, plan_of(task), rows, texts=True)
    return {task: folder / task for task in TASKS}


def labels_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "labels.csv", keep_default_na=False)


@pytest.mark.parametrize("task", TASKS)
def test_the_oracle_is_always_right_and_the_ceiling_is_it_where_classes_are_clear(task, cohorts, rows):
    labels = labels_of(cohorts[task])
    ids = labels["slide_id"].tolist()
    second = labels["label"] == LABELS[task][1]
    assert set(labels["label"]) == set(LABELS[task])
    scores = oracle_scores(cohorts[task], ids)
    assert roc_auc_score(second, scores) == 1
    np.testing.assert_array_equal(ceiling_scores(cohorts[task], rows, ids), scores)


@pytest.mark.parametrize("task", TASKS)
def test_without_differences_between_patches_the_ceiling_is_chance(task, cohorts, rows):
    rng = np.random.default_rng(1)
    noise = replace(rows, features=rng.standard_normal(rows.features.shape).astype(np.float32))
    labels = labels_of(cohorts[task])
    test = labels[labels["split"] == "test"]
    scores = ceiling_scores(cohorts[task], noise, test["slide_id"].tolist())
    assert 0.15 < roc_auc_score(test["label"] == LABELS[task][1], scores) < 0.85


@pytest.mark.parametrize("task", TASKS)
def test_truth_has_the_places_of_the_feature_files(task, cohorts):
    truth = pd.read_parquet(cohorts[task] / "truth" / "patches.parquet")
    for slide_id, patches in truth.groupby("slide_id", observed=True):
        bag = read_bag(features_folder(cohorts[task], "texture") / f"{slide_id}.h5")
        np.testing.assert_array_equal(bag.coords.numpy(), 256 * patches[["x", "y"]].to_numpy())


@pytest.mark.parametrize("task", TASKS)
def test_texts_come_with_it_and_a_changed_one_is_refused(task, cohorts, rows):
    out = cohorts[task]
    record = write_cohort(out, plan_of(task), rows, texts=True)
    assert set(record["texts"]) == {"reports.csv", "questions.csv", "captions.json", "questions.json"}
    assert all(commit.file_sha256(out / name) == digest for name, digest in record["texts"].items())
    assert set(pd.read_csv(out / "reports.csv")["slide_id"]) == set(labels_of(out)["slide_id"])
    before = (out / "reports.csv").read_bytes()
    (out / "reports.csv").write_bytes(before + b"x")
    with pytest.raises(StoreError, match=r"reports\.csv: changed since"):
        write_cohort(out, plan_of(task), rows, texts=True)
    (out / "reports.csv").unlink()
    write_cohort(out, plan_of(task), rows, texts=True)
    assert (out / "reports.csv").read_bytes() == before


def test_texts_can_be_asked_for_later(rows, tmp_path):
    plan = replace(plan_of("needle"), slides=(2, 2, 2))
    assert write_cohort(tmp_path, plan, rows)["texts"] == {}
    assert not (tmp_path / "reports.csv").exists()
    features = features_folder(tmp_path, "texture") / "test-0000.h5"
    written = features.stat().st_mtime_ns
    assert len(write_cohort(tmp_path, plan, rows, texts=True)["texts"]) == 4
    assert features.stat().st_mtime_ns == written
    assert len(write_cohort(tmp_path, plan, rows)["texts"]) == 4


def test_a_mixtures_label_is_the_side_of_the_median(cohorts):
    labels = labels_of(cohorts["mixture"])
    above = labels["necrosis_share"] > labels["necrosis_share"].median()
    np.testing.assert_array_equal(labels["label"] == "high", above)
    assert abs(above.sum() - len(labels) / 2) <= 1
    assert (labels.groupby("split")["label"].nunique() == 2).all()
    assert labels["necrosis_share"].between(0.015, 0.405).all()
    np.testing.assert_array_equal(labels["evidence_fraction"], labels["necrosis_share"])


def test_some_patients_of_a_mixture_have_no_tumour(cohorts):
    labels = labels_of(cohorts["mixture"])
    without = labels["subtype"] == ""
    assert 0 < without.sum() < len(labels)
    np.testing.assert_array_equal(without, labels["grade"] == 0)
    assert (labels.loc[without, "metastasis"] == "no").all()
    assert (labels.loc[without, "til_pattern"] == "none").all()


@pytest.mark.parametrize("slides", [2, 3, 5, 8])
def test_both_sides_of_the_median_are_in_every_split(slides):
    plan = CohortPlan(slides=(slides, 2, slides), task="mixture")
    shares = [necrosis_shares(plan, split) for split in range(3)]
    median = np.median(np.concatenate(shares))
    assert all((part > median).any() and (part < median).any() for part in shares)


@pytest.mark.parametrize("necrosis", [0.02, 0.4])
@pytest.mark.parametrize("tumour", [None, A2])
def test_mixture_counts_are_exact(necrosis, tumour):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        layout = mixture_layout(rng, 300, tumour_class=tumour, deposit=0.5, necrosis=necrosis)
        assert layout.tissue.sum() == 300
        assert layout.counts[NECROSIS] == round(300 * necrosis)
        sizes = [layout.counts.get(cls, 0) for cls in PHANTOM.tumours]
        assert (max(sizes) == sum(sizes) <= 150) if tumour else sum(sizes) == 0


def test_necrosis_of_a_mixture_is_spread_over_the_slide():
    layout = mixture_layout(np.random.default_rng(0), 1000, tumour_class=None, deposit=0.2, necrosis=0.2)
    places = layout.coords[layout.patch_classes == NECROSIS]
    assert (places.std(0) > 0.7 * layout.coords.std(0)).all()


def both(seed: int, n: int) -> tuple[Layout, Layout]:
    inside, margin = (
        spatial_layout(np.random.default_rng(seed), n, tumour_class=A2, deposit=0.2, pattern=pattern)
        for pattern in ("inside", "margin")
    )
    return inside, margin


@pytest.mark.parametrize("n", [225, 300, 1000])
def test_patterns_differ_in_arrangement_alone(n):
    """Same counts of every class, same surroundings, same deposit: nothing but the places within it."""
    for seed in range(25):
        inside, margin = both(seed, n)
        assert inside.counts == margin.counts
        assert inside.counts[A2] + inside.counts[LYMPHOCYTES] == round(0.2 * n)
        differ = inside.classes != margin.classes
        assert differ.any()
        assert np.isin(inside.classes[differ], (A2, LYMPHOCYTES)).all()
        assert np.isin(margin.classes[differ], (A2, LYMPHOCYTES)).all()
        _, pieces = ndimage.label(np.isin(inside.classes, (A2, LYMPHOCYTES)))
        assert pieces == 1


def test_inside_and_margin_are_where_they_say():
    for seed in range(25):
        inside, margin = both(seed, 300)
        for layout, wanted in ((inside, False), (margin, True)):
            lymphocytes = layout.classes == LYMPHOCYTES
            other = layout.tissue & ~np.isin(layout.classes, (A2, LYMPHOCYTES))
            touches = ndimage.binary_dilation(other, np.ones((3, 3)))[lymphocytes]
            assert (touches == wanted).all()
        scores = [spatial_score(one.patch_classes.astype(int), one.coords, PHANTOM) for one in (inside, margin)]
        assert scores[0] == 1 > scores[1]


def test_slides_of_both_patterns_hold_the_same_rows(rows, tmp_path):
    """For a model that ignores positions the two slides are the same bag."""
    plan = plan_of("spatial")
    patient = patients(plan, 0, sites=2, settings=3)[0]
    made = [
        writer._write_feature_slide(tmp_path / pattern, plan, rows, PlannedSlide(0, 0, one, 0.0))
        for pattern in ("inside", "margin")
        for one in [replace(patient, pattern=pattern)]
    ]
    assert not np.array_equal(made[0].bank_rows, made[1].bank_rows)
    np.testing.assert_array_equal(np.sort(made[0].bank_rows), np.sort(made[1].bank_rows))


def test_the_subtype_of_a_spatial_slide_says_nothing_of_its_label():
    of = {p.case_id: p for p in patients(CohortPlan(slides=(2000, 2, 2), task="spatial"), 0, sites=1, settings=1)}
    agree = np.mean([(p.subtype == "a") == (p.pattern == "inside") for p in of.values()])
    assert abs(agree - 0.5) < 4 * (0.25 / len(of)) ** 0.5


def test_patterns_by_the_rule():
    classes = np.full((5, 5), STROMA, np.uint8)
    classes[2, 2] = A2
    assert til_pattern(Layout(classes)) == "none"
    classes[1, 1] = LYMPHOCYTES
    assert til_pattern(Layout(classes)) == "none"  # one of eight neighbours
    classes[1, 2] = LYMPHOCYTES
    assert til_pattern(Layout(classes)) == "margin"  # two of eight
    assert til_pattern(Layout(np.full((2, 2), A2, np.uint8))) == "none"


def test_the_largest_deposit_is_counted_by_shared_sides():
    classes = np.full((4, 5), GLASS, np.uint8)
    classes[0, :2] = classes[1, 2] = classes[3, 4] = A2
    assert largest_deposit(Layout(classes)) == 2
    assert largest_deposit(Layout(np.zeros((2, 2), np.uint8))) == 0


def test_tasks_whose_class_a_bank_lacks_are_refused_before_work(rows, tmp_path):
    classes = TissueClasses(("rest", "one", "two"), (0,), (1,), (2,))
    other = replace(rows, classes=classes, cls=np.minimum(rows.cls, 2))
    with pytest.raises(ValueError, match="needs a class 'necrosis', which these patches lack"):
        write_cohort(tmp_path, plan_of("mixture"), other)
    with pytest.raises(ValueError, match="needs a class 'lymphocytes'"):
        write_cohort(tmp_path, plan_of("spatial"), other)
    with pytest.raises(ValueError, match="which a mosaic does not have"):
        write_cohort(tmp_path, plan_of("needle"), other, texts=True)
    assert not list(tmp_path.iterdir())


def test_layouts_refuse_what_they_cannot_lay_out():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="pattern must be 'inside' or 'margin', got 'none'"):
        spatial_layout(rng, 300, tumour_class=A2, deposit=0.2, pattern="none")
    for name, lay in (("necrosis", mixture_layout), ("lymphocytes", spatial_layout)):
        classes = TissueClasses((name, "a", "b"), (0,), (1,), (2,))
        more = {"necrosis": 0.1} if name == "necrosis" else {"pattern": "inside"}
        with pytest.raises(ValueError, match=f"neither tumour nor {name}"):
            lay(rng, 300, tumour_class=1, deposit=0.2, classes=classes, **more)
