"""`abbe evaluate classify`: a trained model on a labelled cohort, or figures from predictions made before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abbe import __version__
from abbe.cohorts.dataset import gather
from abbe.cohorts.tables import SPLITS, read_labels
from abbe.console import result
from abbe.errors import ConfigError, TableError
from abbe.metrics.predictions import figures, read_predictions, summary, write_predictions
from abbe.models.hub import load
from abbe.models.predict import predict
from abbe.store import commit
from abbe.store.aliases import same_encoder


@dataclass(frozen=True)
class EvaluateClassify:
    """Measure a classifier on the slides of a labels table, with 95 % intervals over patients.

    Example:
      abbe evaluate classify --model run/model --features features --labels labels.csv --split test --out figures
      abbe evaluate classify --predictions run/predictions.parquet --split test --out figures
    """

    out: Path
    """folder for predictions.parquet and result.json"""
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
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        report = evaluate_classifier(self)
        lines = [f"slides: {report['slides']}, patients: {report['patients']}"]
        for name, value in report["figures"].items():
            shown = "not defined" if value["value"] is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**value)
            lines.append(f"{name}: {shown}")
        result("\n".join(lines), report, json_output=self.json)
        return 0


def evaluate_classifier(run: EvaluateClassify) -> dict[str, Any]:
    """Predictions and figures, committed to `run.out`; returns what result.json holds."""
    left_out: dict[str, str] = {}
    if run.predictions is not None:
        if run.model or run.features or run.labels:
            raise ConfigError("give either --predictions, or --model, --features and --labels")
        table = read_predictions(run.predictions)
        if run.split is not None:
            table = table[table["split"] == run.split].reset_index(drop=True)
    else:
        if not (run.model and run.features and run.labels):
            raise ConfigError("--model, --features and --labels go together; or give --predictions")
        labels = read_labels(run.labels, label=run.label, require_split=run.split is not None)
        if run.split is not None:
            labels = labels[labels["split"] == run.split]
        else:
            labels = labels.assign(split=SPLITS[-1])
        model = load(run.model)
        cohort = gather(
            labels, run.features, label=run.label, classes=model.config.classes, allow_missing=run.allow_missing
        )
        expected = model.config.encoder
        if cohort.width != model.config.dim or (expected is not None and not same_encoder(expected, cohort.encoder)):
            raise ConfigError(
                f"{run.features}: features are {cohort.width} wide, of {cohort.encoder!r}; the model needs "
                f"{model.config.dim} of {model.config.encoder!r}"
            )
        left_out = cohort.left_out
        items = [item for split in cohort.splits.values() for item in split]
        table = predict(model, items, split=run.split or "")
    if table.empty:
        raise TableError(f"no slides to evaluate in split {run.split!r}")
    write_predictions(run.out / "predictions.parquet", table)
    report = {
        "abbe": __version__,
        "model": run.model,
        "split": run.split,
        "slides": len(table),
        "patients": int(table["case_id"].nunique()),
        "left_out": left_out,
        "figures": summary(figures(table, draws=run.draws)),
        "labels_sha256": commit.file_sha256(run.labels) if run.labels else None,
        "predictions_sha256": commit.file_sha256(run.out / "predictions.parquet"),
    }
    commit.write_json(run.out / "result.json", report, format="abbe-result")
    return report
