"""What a model was trained or chosen on is not measured without saying so, nor are features of another kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import abbe
from abbe.errors import CheckpointError, ConfigError
from abbe.evaluate.protocols.classify import evaluate_classifier
from abbe.evaluate.protocols.holdout import train_classifier
from abbe.evaluate.settings import EvaluationSettings, HoldoutSettings
from abbe.metrics.predictions import read_predictions
from abbe.models.record import patient_sha256
from abbe.store.kind import Kind
from abbe.store.trident import write_features
from abbe.train.recipe import Recipe
from builders import make_bag, write_cohort

QUICK = Recipe(epochs=1)


@dataclass(frozen=True)
class Trained:
    """A run on 20 slides of 20 patients: 12 train, 4 val, 4 test."""

    run: Path
    features: Path
    labels: Path
    splits: dict[str, str]  # slide_id → split


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    features, labels = write_cohort(folder, patients=20, n=4)
    train_classifier(settings(features, labels), folder / "run")
    table = pd.read_csv(folder / "run" / "splits.csv", dtype=str)
    splits = dict(zip(table["slide_id"], table["split"], strict=True))
    assert sorted(splits.values()) == ["test"] * 4 + ["train"] * 12 + ["val"] * 4
    return Trained(folder / "run", features, labels, splits)


def settings(features: Path, labels: Path, **options: Any) -> HoldoutSettings:
    given = {"condenser": "mean", "recipe": QUICK, "draws": 10, "cpu": True, **options}
    return HoldoutSettings(features=features, labels=labels, **given)


@pytest.fixture
def evaluate(trained: Trained, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(**options: Any) -> dict[str, Any]:
        if "predictions" not in options:
            own = {"model": str(trained.run / "model"), "features": trained.features, "labels": trained.labels}
            options = {**own, **options}
        return evaluate_classifier(EvaluationSettings(draws=10, **options), tmp_path / "evaluation")

    return run


def slides(folder: Path) -> set[str]:
    return set(read_predictions(folder / "evaluation" / "predictions.parquet")["slide_id"])


def test_a_model_folder_says_what_it_was_trained_on_without_names(trained: Trained) -> None:
    text = (trained.run / "model" / "training.json").read_text()
    record = json.loads(text)
    inputs = json.loads((trained.run / "inputs.json").read_text())["features"]
    for split in ("train", "val"):
        expected = {inputs[slide] for slide, own in trained.splits.items() if own == split}
        assert set(record["slides"][split]) == expected
    assert not any(slide in text or f'"{slide[1:]}"' in text for slide in trained.splits)
    model = abbe.load(trained.run / "model")
    assert model.record is not None
    assert (model.record.count("train"), model.record.count("val")) == (12, 4)
    assert model.record.kind == Kind("test", patch_size_level0=256, level0_mpp=0.5)


def test_slides_of_training_are_left_out_and_counted(
    trained: Trained, evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    report = evaluate()
    assert slides(tmp_path) == {slide for slide, split in trained.splits.items() if split == "test"}
    assert report["training"] == {"known": True, "included": False, "slides": {"train": 12, "val": 4}}
    assert any("16 slides" in remark for remark in report["remarks"])
    held_out = json.loads((trained.run / "result.json").read_text())["metrics"]["test"]
    assert report["metrics"]["auroc"]["value"] == held_out["auroc"]["value"]
    report = evaluate(include_training=True)
    assert slides(tmp_path) == set(trained.splits)
    assert report["training"]["included"]
    assert any(remark.startswith("NOT HELD OUT: 16 ") for remark in report["remarks"])
    # The predictions say it too, to whoever measures them again.
    again = evaluate(predictions=tmp_path / "evaluation" / "predictions.parquet")
    assert again["training"]["slides"] == {"train": 12, "val": 4}
    assert again["slides"] == 4


def test_where_nothing_else_is_left_it_is_refused(
    trained: Trained, evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for options in (
        {"labels": trained.run / "splits.csv", "split": "train"},
        {"predictions": trained.run / "predictions.parquet", "split": "val"},
    ):
        with pytest.raises(ConfigError, match=r"(model|predictions\.parquet): all \d+ slides.*--include-training"):
            evaluate(**options)
        assert not (tmp_path / "evaluation").exists()


def test_validation_slides_of_a_run_s_predictions_are_left_out(
    trained: Trained, evaluate: Callable[..., dict[str, Any]]
) -> None:
    predictions = trained.run / "predictions.parquet"
    report = evaluate(predictions=predictions)
    assert (report["slides"], report["training"]["slides"]) == (4, {"train": 0, "val": 4})
    assert evaluate(predictions=predictions, include_training=True)["slides"] == 8


def test_a_patient_of_training_and_a_renamed_slide_are_left_out(
    trained: Trained, evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Another slide of a training patient, a copy of a training slide under another id and patient, two new ones."""
    patient, copied, *_ = (slide for slide, split in trained.splits.items() if split == "train")
    features = tmp_path / "features"
    for number, name in enumerate(("of-a-patient", "new-a", "new-b")):
        abbe.write_bag(features / f"{name}.h5", make_bag(4, dim=8, slide_id=name, seed=900 + number))
    shutil.copyfile(trained.features / f"{copied}.h5", features / "copy.h5")
    rows = pd.DataFrame(
        {
            "slide_id": ["of-a-patient", "new-a", "new-b", "copy"],
            "case_id": [f"0{patient[1:]}", "x", "y", "z"],
            "label": ["a", "a", "b", "b"],
        }
    )
    rows.to_csv(tmp_path / "labels.csv", index=False)
    report = evaluate(features=features, labels=tmp_path / "labels.csv")
    assert slides(tmp_path) == {"new-a", "new-b"}
    assert report["training"]["slides"]["train"] == 2


def test_a_model_that_does_not_say_is_measured_and_that_is_said(
    trained: Trained, evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(trained.run / "model", tmp_path / "model")
    (tmp_path / "model" / "training.json").unlink()
    report = evaluate(model=str(tmp_path / "model"))
    assert (report["slides"], report["training"]["known"]) == (20, False)
    assert any(str(tmp_path / "model") in remark for remark in report["remarks"])


@pytest.mark.parametrize("text", ["{}", '{"kind": {"mpp": -1}, "mixed": false}', "not json"])
def test_a_record_that_is_not_one_is_refused(text: str, trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run / "model", tmp_path / "model")
    (tmp_path / "model" / "training.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"training\.json: the file has changed"):
        abbe.load(tmp_path / "model")
    (tmp_path / "model" / "training.json.sha256.json").unlink()
    with pytest.raises(CheckpointError, match=r"training\.json: not a training record"):
        abbe.load(tmp_path / "model")


def of_kind(folder: Path, kind: Kind) -> tuple[Path, Path]:
    """20 slides of one kind."""
    rows = []
    for number in range(20):
        bag = make_bag(4, dim=8, slide_id=f"k{number}", seed=number)
        write_features(folder / "features" / f"k{number}.h5", bag, kind=kind)
        rows.append({"slide_id": f"k{number}", "case_id": f"p{number}", "label": "ab"[number % 2]})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "features", folder / "labels.csv"


def test_features_of_another_kind_are_refused(evaluate: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    fine, coarse = (
        of_kind(tmp_path / str(mpp), Kind("test", "1", mpp, round(128 / mpp), 0)) for mpp in (0.5, 1.0)
    )  # fmt: skip
    train_classifier(settings(*fine), tmp_path / "run")
    model, other = str(tmp_path / "run" / "model"), {"features": coarse[0], "labels": coarse[1]}
    record = abbe.load(model).record
    assert record.kind.own() == {"version": "1", "mpp": 0.5, "patch_size": 256, "overlap": 0}
    with pytest.raises(ConfigError, match=r"1\.0/features: .*run/model.*mpp 0\.5 and 1.*--allow-mixed"):
        evaluate(model=model, include_training=True, **other)
    report = evaluate(model=model, include_training=True, allow_mixed=True, **other)
    assert any("mpp 0.5 and 1" in remark for remark in report["remarks"])
    # Nor does training go on from a condenser of another kind.
    learned = settings(*fine, condenser="tcssa", tokens=4, condenser_options=("hidden=8",))
    train_classifier(learned, tmp_path / "tcssa")
    start = {"condenser": "tcssa", "condenser_init": str(tmp_path / "tcssa" / "model")}
    with pytest.raises(ConfigError, match=r"--condenser-init .*tcssa/model.*mpp 0\.5 and 1.*--allow-mixed"):
        train_classifier(settings(*coarse, **start), tmp_path / "on")
    # What a condenser has seen before is part of what the next model has seen.
    swapped = settings(*fine, **start, split_seed=1)
    report = train_classifier(swapped, tmp_path / "swapped")
    splits = [pd.read_csv(tmp_path / name / "splits.csv", dtype=str) for name in ("tcssa", "swapped")]
    before, now = ({*table[table["split"] != "test"]["case_id"]} for table in splits)
    test = {*splits[1][splits[1]["split"] == "test"]["case_id"]}
    assert any(f"{len(before & test)} of {len(test)} test slides" in remark for remark in report["remarks"])
    assert before & test
    record = abbe.load(tmp_path / "swapped" / "model").record
    assert set(record.patients) == {patient_sha256(case) for case in before | now}


def test_counts_and_remarks_are_in_the_result(trained: Trained) -> None:
    report = json.loads((trained.run / "result.json").read_text())
    half = {"train": 6, "val": 2, "test": 2}
    assert report["classes"] == {"a": half, "b": half}
    assert (report["untrained_classes"], report["remarks"], report["features"]["mixed"]) == ([], [], False)
