"""The needle cohort: its truth is exact, splits do not leak, it is reproducible, and folders never mix two plans.

The bank is random instead of rendered, since only the use of its rows is tested.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from abbe.data import SPLITS
from abbe.data.labels import read_labels
from abbe.errors import StoreError
from abbe.inspection.finding import InspectSettings
from abbe.inspection.paths import inspect_paths
from abbe.phantom import bank as bank_module
from abbe.phantom import writer
from abbe.phantom.bank import EncoderVersion, PatchBank
from abbe.phantom.classes import PHANTOM
from abbe.phantom.describe import label_of
from abbe.phantom.plan import METASTASIS_RISK, PlannedSlide, patients
from abbe.phantom.render.tissue import TISSUE_CLASSES
from abbe.phantom.scores import ceiling_scores, difficulty, oracle_scores, predicted_classes
from abbe.phantom.settings import CohortPlan
from abbe.phantom.writer import features_folder, write_cohort
from abbe.store import commit
from abbe.store.bags import read_bag
from abbe.verbs.cohort_phantom import PhantomCohort
from phantom.banks import BANK, random_bank

PLAN = CohortPlan(fraction=0.05, slides=(14, 6, 9), patches=60, seed=3)
COLUMNS = [
    "slide_id", "case_id", "site", "split", "n_patches", "task", "label", "subtype", "grade", "metastasis",
    "necrosis_share", "til_pattern", "evidence_fraction",
]  # fmt: skip
A2, B2 = TISSUE_CLASSES.index("tumour_a2"), TISSUE_CLASSES.index("tumour_b2")


@pytest.fixture(scope="module")
def rows() -> PatchBank:
    return random_bank()


@pytest.fixture(scope="module")
def out(rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, PLAN, rows)
    return folder


@pytest.fixture(scope="module")
def labels(out) -> pd.DataFrame:
    return pd.read_csv(out / "labels.csv")


@pytest.fixture(scope="module")
def truth(out, rows, labels) -> pd.DataFrame:
    """Every patch: its slide's labels, its class, and what its bank row is (with `bank_` before the name)."""
    table = pd.read_parquet(out / "truth" / "patches.parquet").astype({"slide_id": str})
    for name in ("cls", "site", "setting", "split", "purity"):
        table[f"bank_{name}"] = getattr(rows, name)[table["bank_row"]]
    return table.merge(labels, on="slide_id", how="left", validate="many_to_one")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_labels_have_the_stated_columns_and_pass_the_reader(out, labels):
    assert list(labels.columns) == COLUMNS
    assert labels["slide_id"].is_unique
    assert labels["split"].value_counts().to_dict() == {"train": 14, "val": 6, "test": 9}
    assert (labels["task"] == "needle").all()
    assert labels["n_patches"].between(45, 75).all()
    assert labels["n_patches"].nunique() > 5
    assert len(read_labels(out / "labels.csv", require_split=True)) == 29


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5])
def test_counts_of_evidence_are_exact(fraction, rows, tmp_path):
    write_cohort(tmp_path, replace(PLAN, fraction=fraction, slides=(4, 3, 3)), rows)
    labels = pd.read_csv(tmp_path / "labels.csv")
    truth = pd.read_parquet(tmp_path / "truth" / "patches.parquet")
    assert len(truth) == labels["n_patches"].sum()
    for label in labels.itertuples():
        classes = truth.loc[truth["slide_id"] == label.slide_id, "class"].to_numpy()
        tumour = TISSUE_CLASSES.index(f"tumour_{label.subtype}{label.grade}")
        wanted = max(1, round(fraction * label.n_patches))
        assert len(classes) == label.n_patches
        assert (classes == tumour).sum() == np.isin(classes, PHANTOM.tumours).sum() == wanted
        assert label.evidence_fraction == pytest.approx(wanted / label.n_patches, abs=1e-6)
        share = (classes == TISSUE_CLASSES.index("necrosis")).mean()
        assert label.necrosis_share == pytest.approx(share, abs=1e-6)
        assert label.label == label.subtype


def test_a_patient_has_one_of_everything_and_one_split(labels, truth):
    patients = truth.groupby("case_id")
    for name in ("site", "split", "subtype", "grade", "bank_site", "bank_setting"):
        assert (patients[name].nunique() == 1).all(), name
    assert set(labels.groupby("case_id").size()) == {1, 2}
    for name in ("site", "grade", "bank_setting"):
        assert truth[name].nunique() > 1, name


def test_drawn_rows_are_of_the_slides_split_site_and_class(truth):
    assert (truth["split"].map(SPLITS.index) == truth["bank_split"]).all()
    assert (truth["site"] == truth["bank_site"]).all()
    assert (truth["class"] == truth["bank_cls"]).all()
    assert (truth["purity"] == truth["bank_purity"]).all()
    splits_of_row = truth.groupby("bank_row")["split"].nunique()
    assert (splits_of_row == 1).all()
    assert len(splits_of_row) > 100


def test_truth_agrees_with_the_feature_files_row_by_row(out, rows, labels, truth):
    folder = features_folder(out, "texture")
    assert folder == out / "20x_256px_0px_overlap" / "features_texture"
    assert {path.stem for path in folder.glob("*.h5")} == set(labels["slide_id"])
    assert truth["slide_id"].drop_duplicates().tolist() == labels["slide_id"].tolist()
    for slide_id, patches in truth.groupby("slide_id"):
        bag = read_bag(folder / f"{slide_id}.h5")
        np.testing.assert_array_equal(bag.features, rows.features[patches["bank_row"]].astype(np.float16))
        x, y = bag.coords.numpy().T
        width, height = bag.level0_size
        assert (np.diff(y * width + x) > 0).all()  # raster order, no place twice
        assert not (x % 256).any()
        assert not (y % 256).any()
        assert max(x) < width
        assert max(y) < height
        assert (bag.patch_size_level0, bag.mpp, bag.encoder, bag.slide_id) == (256, 0.5, "texture", slide_id)


def test_labels_are_balanced_over_patients(labels):
    for _, split in labels.drop_duplicates("case_id").groupby("split"):
        counts = split["label"].value_counts()
        assert abs(counts["a"] - counts["b"]) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_two_slides_are_two_patients_of_both_subtypes(seed, rows, tmp_path):
    write_cohort(tmp_path, CohortPlan(0.1, (2, 2, 2), 16, seed), rows)
    labels = pd.read_csv(tmp_path / "labels.csv")
    assert (labels.groupby("split")["label"].nunique() == 2).all()
    assert labels["case_id"].is_unique


def test_nothing_but_the_deposit_depends_on_the_subtype(rows, tmp_path):
    a = patients(PLAN, 0, sites=2, settings=3)[0]
    assert a.subtype == "a"
    planned = [PlannedSlide(0, 0, replace(a, subtype=subtype), 0.1) for subtype in "ab"]
    made = [writer._write_feature_slide(tmp_path, PLAN, rows, slide) for slide in planned]
    classes, other_classes = (one.layout.patch_classes for one in made)
    drawn, other_drawn = (one.bank_rows for one in made)
    normal = ~np.isin(classes, PHANTOM.tumours)
    np.testing.assert_array_equal(~np.isin(other_classes, PHANTOM.tumours), normal)
    np.testing.assert_array_equal(other_drawn[normal], drawn[normal])
    assert (other_drawn[~normal] != drawn[~normal]).all()
    label, other = (label_of(PLAN, PHANTOM, one.slide, one.layout) for one in made)
    assert {name for name in label if label[name] != other[name]} == {"label", "subtype"}


def test_cohorts_of_two_fractions_have_the_same_patients(out, labels, rows, tmp_path):
    write_cohort(tmp_path, replace(PLAN, fraction=0.2), rows)
    found = pd.read_csv(tmp_path / "labels.csv")
    same = ["slide_id", "case_id", "site", "split", "n_patches", "label", "grade"]
    pd.testing.assert_frame_equal(found[same], labels[same])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(out, rows, labels, tmp_path):
    write_cohort(tmp_path / "same", PLAN, rows)
    write_cohort(tmp_path / "other", replace(PLAN, seed=4), rows)
    assert contents(tmp_path / "same") == contents(out)
    other = pd.read_csv(tmp_path / "other" / "labels.csv")
    assert (other["n_patches"] != labels["n_patches"]).mean() > 0.5


def test_the_record_holds_parameters_hashes_and_difficulty(out, rows):
    record = json.loads((out / "cohort.json").read_text(encoding="utf-8"))
    assert (record["format"], record["version"], record["slides"]) == ("abbe-cohort", 2, 29)
    plan = {"task": "needle", "fraction": 0.05, "slides": [14, 6, 9], "patches": 60, "seed": 3, "deposit": 0.2}
    assert record["parameters"]["plan"] == plan
    assert (record["filling"], record["parameters"]["level"]) == ("phantom", "features")
    assert record["classes"] == list(TISSUE_CLASSES)
    assert record["features"] == "20x_256px_0px_overlap/features_texture"
    assert record["parameters"]["bank"]["sites"] == 2
    assert record["labels_sha256"] == commit.file_sha256(out / "labels.csv")
    assert record["truth_sha256"] == commit.file_sha256(out / "truth" / "patches.parquet")
    assert record["difficulty"] == difficulty(rows)
    assert all(commit.is_done(path) for path in out.rglob("*") if path.is_file() and ".sha256.json" not in path.name)


def test_a_whole_cohort_is_read_back(out, rows, monkeypatch):
    before = contents(out)
    monkeypatch.setattr(writer, "_write_feature_slide", None)
    assert write_cohort(out, PLAN, rows) == json.loads((out / "cohort.json").read_text(encoding="utf-8"))
    assert contents(out) == before


@pytest.fixture
def small(rows, tmp_path) -> tuple[CohortPlan, Path]:
    plan = replace(PLAN, slides=(3, 2, 2))
    write_cohort(tmp_path / "small", plan, rows)
    return plan, tmp_path / "small"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cohort.json", "plan.json", "labels.csv", "truth/patches.parquet", "test-0001.h5", "train-0000.h5"]
)
@pytest.mark.parametrize("harm", ["gone", "torn"])
def test_missing_and_torn_files_are_made_again_or_refused_by_name(name, harm, small, rows):
    plan, out = small
    before = contents(out)
    path = out / name if "/" in name or not name.endswith("h5") else features_folder(out, "texture") / name
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5])
    if harm == "torn" and name in ("labels.csv", "truth/patches.parquet"):
        with pytest.raises(StoreError, match=f"{name}: changed since"):
            write_cohort(out, plan, rows)
        path.unlink()
    write_cohort(out, plan, rows)
    assert contents(out) == before


@pytest.mark.parametrize("half_way", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fraction": 0.06}, r"plan\.fraction is 0\.05 there and 0\.06 here"),
        ({"slides": (3, 2, 3)}, r"plan\.slides is \[3, 2, 2\] there and \[3, 2, 3\] here"),
        ({"patches": 61}, r"plan\.patches is 60 there and 61 here"),
        ({"seed": 5}, r"plan\.seed is 3 there and 5 here"),
    ],
)
def test_another_plan_in_the_folder_is_refused(half_way, change, words, small, rows):
    plan, out = small
    if half_way:
        (out / "cohort.json").unlink()
    before = contents(out)
    with pytest.raises(ValueError, match=words):
        write_cohort(out, replace(plan, **change), rows)
    assert contents(out) == before


def test_the_spec_of_an_encoder_is_not_used_as_a_path(tmp_path, rows):
    """Features are where `abbe encode` would put them, whatever path the model came from."""
    spec = "timm:local-dir:../../../em"
    made = replace(rows, plan=replace(BANK, encoder=spec), encoder=EncoderVersion("timm-em", "0123"))
    record = write_cohort(tmp_path / "out", replace(PLAN, slides=(2, 2, 2)), made)
    assert record["features"] == "20x_256px_0px_overlap/features_timm-em"
    assert features_folder(tmp_path / "out", spec) == tmp_path / "out" / record["features"]
    assert read_bag(tmp_path / "out" / record["features"] / "test-0000.h5").encoder == "timm-em"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_bank_in_the_folder_is_refused(small):
    plan, out = small
    with pytest.raises(ValueError, match=r"bank\.seed is 0 there and 1 here"):
        write_cohort(out, plan, random_bank(plan=replace(BANK, seed=1)))


def test_a_cohort_of_another_version_is_refused(small, rows):
    plan, out = small
    record = json.loads((out / "cohort.json").read_text(encoding="utf-8"))
    commit.write_json(out / "cohort.json", record, format="abbe-cohort", version=99)
    with pytest.raises(ValueError, match=r"cohort\.json: format 'abbe-cohort' version 99"):
        write_cohort(out, plan, rows)


def test_a_cohort_of_patches_that_saw_no_jpeg_is_of_version_1(small, rows):
    """Whether it is complete or not; `abbe inspect` says its version too."""
    plan, out = small
    assert inspect_paths([out], InspectSettings())[0].facts["phantom version"] == 2
    for name, form in (("cohort.json", writer.FORMAT), ("plan.json", writer.PLAN_FORMAT)):
        record = json.loads((out / name).read_text(encoding="utf-8"))
        assert record["parameters"]["bank"].pop("phantom_version") == 2
        commit.write_json(out / name, record, format=form, version=writer.VERSION)
    assert inspect_paths([out], InspectSettings())[0].facts["phantom version"] == 1
    for name in ("cohort.json", "plan.json"):
        with pytest.raises(ValueError, match=rf"{name}: .*bank\.phantom_version is 1 there and 2 here"):
            write_cohort(out, plan, rows)
        (out / name).unlink()


def test_the_ceiling_counts_b_for_and_a_against(out, rows, labels):
    """With well separated classes every prediction is right, so the score is the signed count of evidence."""
    evidence = (labels["evidence_fraction"] * labels["n_patches"]).round()
    signed = np.where(labels["label"] == "b", evidence, -evidence)
    np.testing.assert_array_equal(ceiling_scores(out, rows, labels["slide_id"].tolist()), signed)
    backwards = labels["slide_id"].tolist()[::-1]
    np.testing.assert_array_equal(ceiling_scores(out, rows, backwards), signed[::-1])
    np.testing.assert_array_equal(oracle_scores(out, backwards), signed[::-1])


def test_the_probe_learns_from_the_train_split_alone(out, rows, labels):
    """Where a2 and b2 of the test split look like each other's train patches, it is wrong about all of them."""
    test = rows.split == SPLITS.index("test")
    swapped = rows.features.copy()
    a, b = np.flatnonzero(test & (rows.cls == A2)), np.flatnonzero(test & (rows.cls == B2))
    swapped[a], swapped[b] = rows.features[b], rows.features[a]
    other = replace(rows, features=swapped)
    assert (predicted_classes(other)[a] == B2).all()
    assert (predicted_classes(other)[b] == A2).all()
    assert difficulty(rows)["probe_a2_b2"] == difficulty(rows)["probe_all_classes"] == 1
    assert difficulty(other)["probe_a2_b2"] == 0
    turned = labels[(labels["split"] == "test") & (labels["grade"] == 2)]["slide_id"].tolist()
    kept = labels[(labels["split"] == "test") & (labels["grade"] != 2)]["slide_id"].tolist()
    assert min(len(turned), len(kept)) > 0
    np.testing.assert_array_equal(ceiling_scores(out, other, turned), -ceiling_scores(out, rows, turned))
    np.testing.assert_array_equal(ceiling_scores(out, other, kept), ceiling_scores(out, rows, kept))


def test_difficulty_counts_the_patches_it_rests_on(rows):
    cells = BANK.sites * 3
    assert difficulty(rows)["probe_a2_b2_patches"] == {"train": 2 * 4 * cells, "test": 2 * 3 * cells}
    # Without any difference between classes a probe is at chance, whatever it saw in training.
    assert difficulty(random_bank(clear=0.0))["probe_all_classes"] < 0.25


def test_scores_with_another_bank_or_of_unknown_slides_are_refused(out, rows):
    with pytest.raises(ValueError, match="drawn from a bank of another plan"):
        ceiling_scores(out, random_bank(plan=replace(BANK, seed=1)), ["test-0000"])
    with pytest.raises(ValueError, match="no slide 'nobody' in this cohort"):
        ceiling_scores(out, rows, ["test-0000", "nobody"])
    with pytest.raises(ValueError, match="no slide 'nobody' in this cohort"):
        oracle_scores(out, ["nobody"])
    with pytest.raises(StoreError, match=r"cohort\.json: not found; make the cohort first"):
        oracle_scores(out / "elsewhere", ["test-0000"])


def test_the_command_makes_cohort_and_prints_its_record(rows, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        bank_module, "build_bank", lambda plan, folder, workers: asked.append((plan, folder, workers)) or rows
    )
    plan = replace(PLAN, slides=(3, 2, 2))
    assert PhantomCohort(tmp_path, plan, bank=BANK, workers=1, json=True).run() == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "cohort.json").read_text(encoding="utf-8"))
    assert PhantomCohort(tmp_path, plan, bank=BANK, bank_folder=tmp_path / "shared").run() == 0
    assert "7 slides" in capsys.readouterr().out
    assert asked == [(BANK, tmp_path / "bank", 1), (BANK, tmp_path / "shared", None)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fraction": 0.0}, "fraction must lie in"),
        ({"fraction": 1.0}, "got 1.0"),
        ({"fraction": float("nan")}, "got nan"),
        ({"slides": (2, 1, 2)}, r"at least two for each of train, val, test, got \(2, 1, 2\)"),
        ({"slides": (5, 5)}, r"got \(5, 5\)"),
        ({"patches": 15}, "patches must be at least 16, got 15"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"task": "needles"}, "task must be one of needle, mixture, spatial, got 'needles'"),
        ({"deposit": 0.6}, r"^--plan\.deposit must lie in \(0, 0\.5\], got 0\.6"),
        (
            {"task": "spatial", "patches": 200},
            r"needs --plan\.deposit x --plan\.patches of at least 60, .* got 0\.2 x 200",
        ),
    ],
)
def test_invalid_plans_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        CohortPlan(**values)


def test_metastasis_is_the_patients_and_follows_the_stated_risk(labels):
    assert (labels.groupby("case_id")["metastasis"].nunique() == 1).all()
    plan = CohortPlan(slides=(3000, 2, 2))
    of = {patient.case_id: patient for patient in patients(plan, 0, sites=1, settings=1)}
    for grade, risk in METASTASIS_RISK.items():
        having = [patient.metastasis for patient in of.values() if patient.grade == grade]
        assert abs(np.mean(having) - risk) < 4 * (risk * (1 - risk) / len(having)) ** 0.5
