"""One run from a labels table to its result: train, select on validation patients, evaluate on test patients."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState

from abbe.config import only
from abbe.data.cohort import Cohort, read_cohort
from abbe.data.dataset import SlideDataset
from abbe.evaluate.predict import predict
from abbe.evaluate.settings import HoldoutSettings
from abbe.metrics.bootstrap import shown
from abbe.metrics.predictions import all_metrics, summary, write_predictions
from abbe.models.classifier import Classifier
from abbe.models.hub import save_pretrained, weights_sha256
from abbe.store import commit
from abbe.store.resume import check_unchanged
from abbe.train import checkpoint
from abbe.train.loop import fit
from abbe.train.objectives.classify import ClassifyObjective, plan_classifier
from abbe.train.recipe import Recipe
from abbe.train.settings import DEFAULT_TOKENS
from abbe.version import __version__

RESULT_VERSION = 2
_REMEDY = "use another --out, or --no-resume to start again here"


def train_classifier(settings: HoldoutSettings, out: Path) -> dict[str, Any]:
    """Read the cohort, train and evaluate the model, and write the run; returns the content of result.json.

    A finished run with the same settings is read, not repeated. Under `accelerate launch` all processes train; the main
    process evaluates and writes, the others wait and return {}.
    """
    processes = PartialState(cpu=settings.cpu)
    if settings.resume:
        _check_settings(out / "config.json", settings)
        if commit.is_done(out / "result.json"):
            return read_result(out / "result.json")
    cohort = read_cohort(settings)
    plan = plan_classifier(settings, cohort)
    origin = _origin(settings, out)
    processes.wait_for_everyone()  # all processes must check the folder before the main process writes to it
    if processes.is_main_process:
        _start(out, settings, cohort, origin)
    train = SlideDataset(cohort.splits["train"])
    model, history = fit(
        lambda: plan.build(train[row][0].features for row in range(len(train))),
        ClassifyObjective(),
        train,
        SlideDataset(cohort.splits["val"]),
        settings.recipe,
        folder=out / "checkpoint",
        resume=settings.resume,
        cpu=settings.cpu,
        description=f"training {settings.condenser}",
    )
    assert isinstance(model, Classifier)
    report: dict[str, Any] = {}
    if processes.is_main_process:
        tables = {split: predict(model, cohort.splits[split], split=split) for split in ("val", "test")}
        report = _report(settings, cohort, model, history, tables) | origin
        _write(out, settings, model, history, tables, report)
    processes.wait_for_everyone()
    return report


def read_result(path: Path) -> dict[str, Any]:
    """The content of result.json; keys of earlier versions are renamed to the current ones."""
    report = dict(json.loads(path.read_text(encoding="utf-8")))
    if "figures" in report:  # version 1
        report["metrics"] = report.pop("figures")
    return report


def _check_settings(path: Path, settings: HoldoutSettings) -> None:
    """Raise ConfigError if the folder has a run with other settings; resuming would mix two experiments."""
    if path.is_file():
        old = _in_effect(json.loads(path.read_text(encoding="utf-8")))
        new = _in_effect(only(HoldoutSettings, settings))
        check_unchanged(path, old, new, remedy=_REMEDY, ignore=("json", "resume", "out", "cpu"))


def _in_effect(given: dict[str, Any]) -> dict[str, Any]:
    """Settings completed with defaults, because earlier versions recorded fewer keys."""
    defaults = {item.name: item.default for item in fields(HoldoutSettings) if item.default is not MISSING}
    full = {**json.loads(json.dumps(defaults, default=str)), **given}
    if full["tokens"] is None and full["condenser_init"] is None:
        full["tokens"] = DEFAULT_TOKENS
    full["recipe"] = {**json.loads(json.dumps(vars(Recipe()))), **full.get("recipe", {})}
    return full


def _origin(settings: HoldoutSettings, out: Path) -> dict[str, Any]:
    """{"condenser_init_sha256": hash of the initial weights}. Raises ConfigError if a resumed run used others."""
    if settings.condenser_init is None:
        return {"condenser_init_sha256": None}
    found = {"condenser_init_sha256": weights_sha256(settings.condenser_init)}
    path = out / "condenser_init.json"
    if settings.resume and path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        before = {"condenser_init_sha256": old.get("condenser_init_sha256", old.get("sha256"))}
        check_unchanged(path, before, found, remedy=_REMEDY)
    return found


def _start(out: Path, settings: HoldoutSettings, cohort: Cohort, origin: dict[str, Any]) -> None:
    """Write the settings and splits at the start of a run; they are compared when it resumes."""
    config = {**only(HoldoutSettings, settings), "out": commit.printable(out)}
    commit.write_json(out / "config.json", config, format="abbe-config")
    commit.write_text(out / "splits.csv", cohort.table.to_csv(index=False), format="labels")
    if settings.condenser_init is not None:
        commit.write_json(
            out / "condenser_init.json", {"model": settings.condenser_init, **origin}, format="abbe-origin"
        )


def _report(
    settings: HoldoutSettings,
    cohort: Cohort,
    model: Classifier,
    history: list[dict[str, float]],
    tables: dict[str, pd.DataFrame],
) -> dict[str, Any]:
    return {
        "abbe": __version__,
        "condenser": settings.condenser,
        "tokens": model.condenser.tokens,
        "condenser_train": settings.condenser_train,
        "pooling": settings.pooling,
        "seed": settings.recipe.seed,
        "slides": cohort.slides,
        "patients": cohort.patients,
        "left_out": cohort.left_out,
        "outside_splits": cohort.table.attrs.get("outside_splits", []),
        "epochs": len(history),
        "best_val_task": min(row["val_task"] for row in history),
        "metrics": {split: summary(all_metrics(table, draws=settings.draws)) for split, table in tables.items()},
        "labels_sha256": commit.file_sha256(settings.labels),
        "splits_sha256": commit.file_sha256(settings.splits) if settings.splits else None,
    }


def _write(
    out: Path,
    settings: HoldoutSettings,
    model: Classifier,
    history: list[dict[str, float]],
    tables: dict[str, pd.DataFrame],
    report: dict[str, Any],
) -> None:
    """Write predictions, history, model and, last, the result: a run with a result is complete."""
    write_predictions(out / "predictions.parquet", pd.concat(tables.values(), ignore_index=True))
    report["predictions_sha256"] = commit.file_sha256(out / "predictions.parquet")
    commit.write_text(out / "history.csv", pd.DataFrame(history).to_csv(index=False), format="history")
    save_pretrained(model, out / "model", card=model_card(model, report))
    made_with = {"settings": only(HoldoutSettings, settings)}
    commit.write_json(out / "result.json", report, format="abbe-result", version=RESULT_VERSION, **made_with)
    checkpoint.remove(out / "checkpoint")


def model_card(model: Classifier, report: dict[str, Any]) -> str:
    """README.md of the model folder: the model, its training data, its test metrics, and references."""
    config = model.config
    rows = "\n".join(f"| {name} | {shown(value)} |" for name, value in report["metrics"]["test"].items())
    cited = "".join(f"- {reference}\n" for reference in model.condenser.references)
    references = f"\nMethod:\n\n{cited}" if cited else ""
    return f"""---
library_name: abbe
tags: [computational-pathology, whole-slide-image]
---
# {config.condenser} slide classifier

Classes: {", ".join(config.classes)}. Features: {config.encoder or "unnamed encoder"}, width {config.dim}.
Condenser: `{config.condenser}` {json.dumps(config.condenser_options)}, {config.pooling} pooling. Seed {report["seed"]}.

Trained on {report["slides"]["train"]} slides, weights selected on {report["slides"]["val"]}; evaluated on
{report["slides"]["test"]} slides of {report["patients"]["test"]} other patients:

| metric | value, 95 % confidence interval over patients |
|---|---|
{rows}

Labels table: sha256 `{report["labels_sha256"]}`. For research; not a medical device.
{references}
```python
import abbe
model = abbe.load("this folder")
prediction = model(abbe.TokenBatch.pack([abbe.read_bag("slide.h5")]))
```
"""
