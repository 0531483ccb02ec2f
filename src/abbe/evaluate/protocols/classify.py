"""A trained model on a labelled cohort, or metrics from predictions made before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abbe import __version__
from abbe.data.cohort import Cohort, load_cohort
from abbe.data.labels import read_labels
from abbe.data.splits import SPLITS
from abbe.errors import ConfigError, TableError
from abbe.evaluate.predict import predict
from abbe.metrics.predictions import all_metrics, read_predictions, summary, write_predictions
from abbe.models.classifier import Classifier
from abbe.models.hub import load
from abbe.store import commit
from abbe.store.aliases import same_encoder


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """A model and a labelled cohort, or predictions made before."""

    model: str | None = None
    """model folder, or hub id"""
    features: Path | None = None
    """folder of <slide_id>.h5 feature files"""
    labels: Path | None = None
    """csv with slide_id, case_id, a label column, and split where --split is given"""
    predictions: Path | None = None
    """predictions.parquet of an earlier run, instead of model, features and labels"""
    label: str = "label"
    """column of the labels table"""
    split: str | None = None
    """only the slides of this split (train | val | test); all slides otherwise"""
    draws: int = 1000
    """bootstrap samples of patients behind each interval"""
    allow_missing: bool = False
    """go on without slides whose features are missing, broken or empty; they are listed in the result"""

    def __post_init__(self) -> None:
        given = (self.model, self.features, self.labels)
        if self.predictions is not None and any(given):
            raise ConfigError("give either --predictions, or --model, --features and --labels")
        if self.predictions is None and not all(given):
            raise ConfigError("--model, --features and --labels go together; or give --predictions")


def evaluate_classifier(settings: EvaluationSettings, out: Path) -> dict[str, Any]:
    """Predictions and metrics, committed to `out`; returns what result.json holds."""
    left_out: dict[str, str] = {}
    if settings.predictions is not None:
        table = read_predictions(settings.predictions)
        if settings.split is not None:
            table = table[table["split"] == settings.split].reset_index(drop=True)
    else:
        assert settings.model is not None
        model = load(settings.model)
        cohort = _cohort(settings, model)
        left_out = cohort.left_out
        records = [record for split in cohort.splits.values() for record in split]
        table = predict(model, records, split=settings.split or "")
    if table.empty:
        raise TableError(f"no slides to evaluate in split {settings.split!r}")
    write_predictions(out / "predictions.parquet", table)
    report = {
        "abbe": __version__,
        "model": settings.model,
        "split": settings.split,
        "slides": len(table),
        "patients": int(table["case_id"].nunique()),
        "left_out": left_out,
        "metrics": summary(all_metrics(table, draws=settings.draws)),
        "labels_sha256": commit.file_sha256(settings.labels) if settings.labels else None,
        "predictions_sha256": commit.file_sha256(out / "predictions.parquet"),
    }
    commit.write_json(out / "result.json", report, format="abbe-result", version=2)
    return report


def _cohort(settings: EvaluationSettings, model: Classifier) -> Cohort:
    """The slides to evaluate. ConfigError where their features are not those the model needs."""
    assert settings.labels is not None
    assert settings.features is not None
    labels = read_labels(settings.labels, label=settings.label, require_split=settings.split is not None)
    if settings.split is not None:
        labels = labels[labels["split"] == settings.split]
    else:
        labels = labels.assign(split=SPLITS[-1])
    cohort = load_cohort(
        labels,
        settings.features,
        label=settings.label,
        classes=model.config.classes,
        allow_missing=settings.allow_missing,
    )
    expected = model.config.encoder
    if cohort.width != model.config.dim or (expected is not None and not same_encoder(expected, cohort.encoder)):
        raise ConfigError(
            f"{settings.features}: features are {cohort.width} wide, of {cohort.encoder!r}; the model needs "
            f"{model.config.dim} of {expected!r}"
        )
    return cohort
