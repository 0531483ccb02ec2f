"""Evaluate a trained model on a labelled cohort, or compute metrics from earlier predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abbe.data import SPLITS
from abbe.data.cohort import Cohort, load_cohort
from abbe.data.labels import read_labels
from abbe.errors import ConfigError, TableError
from abbe.evaluate.predict import predict
from abbe.evaluate.settings import EvaluationSettings
from abbe.metrics.decisions import recall_report
from abbe.metrics.predictions import all_metrics, read_predictions, summary, write_predictions
from abbe.models.classifier import Classifier
from abbe.models.hub import load
from abbe.store import commit
from abbe.store.aliases import same_encoder
from abbe.version import __version__


def evaluate_classifier(settings: EvaluationSettings, out: Path) -> dict[str, Any]:
    """Write predictions and metrics to `out`; returns the content of result.json."""
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
        **recall_report(table, draws=settings.draws),
        "labels_sha256": commit.file_sha256(settings.labels) if settings.labels else None,
        "predictions_sha256": commit.file_sha256(out / "predictions.parquet"),
    }
    commit.write_json(out / "result.json", report, format="abbe-result", version=2)
    return report


def _cohort(settings: EvaluationSettings, model: Classifier) -> Cohort:
    """The slides to evaluate. Raises ConfigError if width or encoder of their features do not match the model."""
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
            f"{settings.features}: features have width {cohort.width} and encoder {cohort.encoder!r}; the model needs "
            f"width {model.config.dim} and encoder {expected!r}"
        )
    return cohort
