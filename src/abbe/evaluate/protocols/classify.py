"""Evaluate a trained model on a labelled cohort, or compute metrics from earlier predictions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from abbe.data import SPLITS
from abbe.data.cohort import Cohort, load_cohort
from abbe.data.dataset import SlideRecord
from abbe.data.labels import read_labels
from abbe.errors import ConfigError, TableError
from abbe.evaluate.predict import predict
from abbe.evaluate.settings import EvaluationSettings
from abbe.metrics.decisions import recall_report
from abbe.metrics.predictions import all_metrics, class_names, read_predictions, summary, write_predictions
from abbe.models.classifier import Classifier
from abbe.models.hub import load
from abbe.models.record import SEEN
from abbe.store import commit
from abbe.store.aliases import same_encoder
from abbe.version import __version__


def evaluate_classifier(settings: EvaluationSettings, out: Path) -> dict[str, Any]:
    """Write predictions and metrics to `out`; returns the content of result.json.

    Slides and patients that the model was trained or chosen on are left out, unless `include_training`. Raises
    ConfigError if nothing else is left, and if the features are not of the model's kind.
    """
    left_out: dict[str, str] = {}
    remarks: list[str] = []
    if settings.predictions is not None:
        table = read_predictions(settings.predictions)
        if settings.split is not None:
            table = table[table["split"] == settings.split].reset_index(drop=True)
        if table.empty:
            raise TableError(f"no slides to evaluate in split {settings.split!r}")
        seen = {str(row["slide_id"]): row["split"] for _, row in table.iterrows() if row["split"] in SEEN}
        known = bool((table["split"] != "").all())
        table = _select(settings, table, seen)
    else:
        assert settings.model is not None
        model = load(settings.model)
        cohort = _cohort(settings, model)
        left_out, remarks, known = cohort.left_out, list(cohort.remarks), model.record is not None
        records = [record for split in cohort.splits.values() for record in split]
        seen = _seen(model, cohort, records)
        records = [record for record in records if settings.include_training or record.slide_id not in seen]
        _check_any(settings, len(records), seen)
        table = predict(model, records, split=settings.split or "")
        # What a later `--from` reads must say it too.
        table["split"] = [seen.get(slide_id, split) for slide_id, split in zip(*_ids_and_splits(table), strict=True)]
    remarks += _said(settings, seen, known=known)
    write_predictions(out / "predictions.parquet", table)
    counts = Counter(table["label"])
    report = {
        "abbe": __version__,
        "model": settings.model,
        "split": settings.split,
        "slides": len(table),
        "patients": int(table["case_id"].nunique()),
        "classes": {name: counts[name] for name in class_names(table)},
        "left_out": left_out,
        "training": {
            "known": known,
            "included": settings.include_training and bool(seen),
            "slides": {split: list(seen.values()).count(split) for split in SEEN},
        },
        "remarks": remarks,
        "metrics": summary(all_metrics(table, draws=settings.draws)),
        **recall_report(table, draws=settings.draws),
        "labels_sha256": commit.file_sha256(settings.labels) if settings.labels else None,
        "predictions_sha256": commit.file_sha256(out / "predictions.parquet"),
    }
    commit.write_json(out / "result.json", report, format="abbe-result", version=2)
    return report


def _seen(model: Classifier, cohort: Cohort, records: list[SlideRecord]) -> dict[str, str]:
    """{slide_id: train or val} of the slides that the model was trained or chosen on, or another of their patient."""
    if model.record is None:
        return {}
    splits = {
        record.slide_id: model.record.split_of(cohort.sha256[record.slide_id], record.case_id) for record in records
    }
    return {slide_id: split for slide_id, split in splits.items() if split is not None}


def _select(settings: EvaluationSettings, table: pd.DataFrame, seen: dict[str, str]) -> pd.DataFrame:
    if settings.include_training:
        return table
    kept = table[~table["split"].isin(SEEN)].reset_index(drop=True)
    _check_any(settings, len(kept), seen)
    return kept


def _check_any(settings: EvaluationSettings, left: int, seen: dict[str, str]) -> None:
    if not left:
        raise ConfigError(
            f"{settings.model or settings.predictions}: all {len(seen)} slides, or their patients, were in the "
            "training or validation split of the model; give slides of other patients, or use --include-training to "
            "measure these, which says nothing about new patients"
        )


def _said(settings: EvaluationSettings, seen: dict[str, str], *, known: bool) -> list[str]:
    source = settings.model or settings.predictions
    if not known:
        said = (
            f"{source} does not record which slides the model was trained on: whether these are among them is unknown"
        )
        return [said]
    if not seen:
        return []
    counts = ", ".join(f"{split} {list(seen.values()).count(split)}" for split in SEEN)
    if settings.include_training:
        return [
            f"NOT HELD OUT: {len(seen)} of the slides, or their patients, are in the model's training data ({counts})"
        ]
    said = f"left out: {len(seen)} slides that are, or whose patients are, in the model's training data ({counts})"
    return [f"{said}; --include-training measures them too"]


def _ids_and_splits(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    return table["slide_id"].astype(str).tolist(), table["split"].astype(str).tolist()


def _cohort(settings: EvaluationSettings, model: Classifier) -> Cohort:
    """The slides to evaluate. Raises ConfigError if width, encoder or kind of their features are not the model's."""
    assert settings.labels is not None
    assert settings.features is not None
    labels = read_labels(settings.labels, label=settings.label, require_split=settings.split is not None)
    if settings.split is not None:
        labels = labels[labels["split"] == settings.split]
        if labels.empty:
            raise TableError(f"{settings.labels}: no slides in split {settings.split!r}")
    else:
        labels = labels.assign(split=SPLITS[-1])
    cohort = load_cohort(
        labels,
        settings.features,
        label=settings.label,
        classes=model.config.classes,
        allow_missing=settings.allow_missing,
        allow_mixed=settings.allow_mixed,
    )
    expected = model.config.encoder
    if cohort.width != model.config.dim or (expected is not None and not same_encoder(expected, cohort.encoder)):
        raise ConfigError(
            f"{settings.features}: features have width {cohort.width} and encoder {cohort.encoder!r}; the model needs "
            f"width {model.config.dim} and encoder {expected!r}"
        )
    differ = [] if model.record is None else model.record.kind.differences(cohort.kind)
    if differ and not settings.allow_mixed:
        raise ConfigError(
            f"{settings.features}: the features are of another kind than those {settings.model} was trained on "
            f"({'; '.join(differ)}, the model's first): {cohort.kind}; the model needs {model.record.kind}. Encode the "  # type: ignore[union-attr]
            "slides as the training slides were, or use --allow-mixed"
        )
    if differ:
        return replace(
            cohort, remarks=(*cohort.remarks, f"features of another kind than the model's: {'; '.join(differ)}")
        )
    return cohort
