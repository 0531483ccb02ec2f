"""One run from a labels table to its result: train, select on validation patients, evaluate on test patients."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState

from abbe.config import only
from abbe.console import say
from abbe.data.cohort import Cohort, read_cohort
from abbe.data.dataset import SlideDataset
from abbe.errors import ConfigError
from abbe.evaluate.predict import predict
from abbe.evaluate.settings import HoldoutSettings
from abbe.metrics.bootstrap import shown
from abbe.metrics.decisions import recall_report
from abbe.metrics.predictions import all_metrics, summary, write_predictions
from abbe.models.classifier import Classifier
from abbe.models.hub import save_pretrained, weights_sha256
from abbe.models.record import TrainingRecord, make_record
from abbe.store import commit
from abbe.store.resume import check_unchanged
from abbe.train import checkpoint
from abbe.train.loop import fit
from abbe.train.objectives.classify import (
    ClassifierPlan,
    ClassifyObjective,
    balanced_weights,
    plan_classifier,
)
from abbe.train.recipe import Recipe
from abbe.train.settings import DEFAULT_TOKENS
from abbe.version import __version__

RESULT_VERSION = 2
_OUTPUTS = (
    "splits.csv",
    "inputs.json",
    "predictions.parquet",
    "history.csv",
    "model/config.json",
    "model/model.safetensors",
    "model/README.md",
    "model/training.json",
)
_REMEDY = "use another --out, or --no-resume to start again here"


def train_classifier(settings: HoldoutSettings, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Read the cohort, train and evaluate the model, and write the run; returns the content of result.json.

    A finished run with the same settings is read, not repeated. Under `accelerate launch` all processes train; the main
    process evaluates and writes, the others wait and return {}.

    quiet: do not print what the cohort is; the result has it in any case.
    """
    processes = PartialState(cpu=settings.cpu)
    if settings.resume:
        _check_settings(out / "config.json", settings)
    cohort = read_cohort(settings)
    if processes.is_main_process and not quiet:
        say(cohort.describe())
    inputs = _inputs(settings, cohort)
    if settings.resume:
        _check_inputs(out / "inputs.json", inputs)
        if (finished := _finished(out, inputs)) is not None:
            checkpoint.remove(out / "checkpoint")  # the run may have been stopped just before it did
            return finished
    plan = plan_classifier(settings, cohort)
    record = _record(settings, cohort, plan)
    if plan.start is not None and (known := _seen_before(settings, cohort, plan.start.record)):
        if processes.is_main_process:
            say(known)
        cohort = replace(cohort, remarks=(*cohort.remarks, known))
    processes.wait_for_everyone()  # all processes must check the folder before the main process writes to it
    if processes.is_main_process:
        _start(out, settings, cohort, inputs)
    train = SlideDataset(cohort.splits["train"])
    weights = balanced_weights(cohort)
    model, history = fit(
        lambda: plan.build(train[row][0].features for row in range(len(train))),
        ClassifyObjective(weights if settings.class_weight == "balanced" else None),
        train,
        SlideDataset(cohort.splits["val"]),
        settings.recipe,
        folder=out / "checkpoint",
        resume=settings.resume,
        cpu=settings.cpu,
        sampling=[weights[item.label] for item in train.items] if settings.sampling == "balanced" else None,
        description=f"training {settings.condenser}",
    )
    assert isinstance(model, Classifier)
    model.record = record
    report: dict[str, Any] = {}
    if processes.is_main_process:
        tables = {split: predict(model, cohort.splits[split], split=split) for split in ("val", "test")}
        report = _report(settings, cohort, model, history, tables, inputs)
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


def _inputs(settings: HoldoutSettings, cohort: Cohort) -> dict[str, Any]:
    """Hashes of everything a run is made from: labels, splits, every feature file, the weights it starts from."""
    return {
        "labels": commit.file_sha256(settings.labels),
        "splits": commit.file_sha256(settings.splits) if settings.splits else None,
        "features": cohort.sha256,
        "condenser_init": weights_sha256(settings.condenser_init) if settings.condenser_init else None,
    }


def _record(settings: HoldoutSettings, cohort: Cohort, plan: ClassifierPlan) -> TrainingRecord:
    """What the model learns from, together with what the model it starts from has learned from.

    Raises ConfigError if that one was trained on features of another kind.
    """
    earlier = plan.start.record if plan.start is not None else None
    if earlier is not None and not settings.allow_mixed and (differ := earlier.kind.differences(cohort.kind)):
        raise ConfigError(
            f"--condenser-init {settings.condenser_init}: trained on features of another kind than "
            f"{settings.features} ({'; '.join(differ)}); encode the slides alike, or use --allow-mixed"
        )
    slides = [
        (split, cohort.sha256[record.slide_id], record.case_id)
        for split, records in cohort.splits.items()
        for record in records
    ]
    return make_record(cohort.kind, slides, mixed=cohort.mixed).with_earlier(earlier)


def _seen_before(settings: HoldoutSettings, cohort: Cohort, earlier: TrainingRecord | None) -> str:
    """What to say of test slides that the model of --condenser-init has learned from; "" if there are none."""
    if earlier is None:
        return f"{settings.condenser_init} does not record its training slides; test slides may be among them"
    test = cohort.splits["test"]
    seen = sum(earlier.split_of(cohort.sha256[item.slide_id], item.case_id) is not None for item in test)
    if not seen:
        return ""
    return (
        f"NOT HELD OUT: {seen} of {len(test)} test slides, or their patients, are in the training data of "
        f"{settings.condenser_init}"
    )


def _check_inputs(path: Path, inputs: dict[str, Any]) -> None:
    """Refuse to resume or to read back a run whose labels, features or initial weights have changed."""
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        check_unchanged(path, old, inputs, what="inputs", remedy=_REMEDY)


def _finished(out: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a finished run; None if there is none, or if one of its outputs is no longer whole.

    Training is deterministic: what is missing is made again by the same run.
    """
    if not commit.is_done(out / "result.json"):
        return None
    report = read_result(out / "result.json")
    if "outputs" not in report:  # of an earlier version, which recorded the hash of the labels alone
        check_unchanged(
            out / "result.json",
            {"labels": report["labels_sha256"]},
            {"labels": inputs["labels"]},
            what="inputs",
            remedy=_REMEDY,
        )
        return report
    changed = [name for name, digest in report["outputs"].items() if not _is(out / name, digest)]
    if changed:
        say(f"{out}: {', '.join(changed)} missing or changed since the run ended; the run is made again")
        return None
    return report


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and commit.file_sha256(path) == digest


def _start(out: Path, settings: HoldoutSettings, cohort: Cohort, inputs: dict[str, Any]) -> None:
    """What a run keeps from its beginning, and is compared with when it resumes."""
    for folder in (out, out / "model", out / "checkpoint", *(out / "checkpoint").glob("epoch-*")):
        commit.remove_temporaries(folder)  # only the run's own folders: below `out` another run may be writing
    config = {**only(HoldoutSettings, settings), "out": commit.printable(out)}
    commit.write_json(out / "config.json", config, format="abbe-config")
    commit.write_text(out / "splits.csv", cohort.table.to_csv(index=False), format="labels")
    commit.write_json(out / "inputs.json", inputs, format="abbe-inputs")


def _report(
    settings: HoldoutSettings,
    cohort: Cohort,
    model: Classifier,
    history: list[dict[str, float]],
    tables: dict[str, pd.DataFrame],
    inputs: dict[str, Any],
) -> dict[str, Any]:
    return {
        "abbe": __version__,
        "condenser": settings.condenser,
        "condenser_options": model.config.condenser_options,
        "tokens": model.condenser.tokens,
        "condenser_train": settings.condenser_train,
        "pooling": settings.pooling,
        "class_weight": settings.class_weight,
        "sampling": settings.sampling,
        "seed": settings.recipe.seed,
        "slides": cohort.slides,
        "patients": cohort.patients,
        "classes": cohort.counts,
        "untrained_classes": list(cohort.untrained),
        "features": {**cohort.kind.stated(), "mixed": cohort.mixed},
        "remarks": list(cohort.remarks),
        "left_out": cohort.left_out,
        "outside_splits": cohort.table.attrs.get("outside_splits", []),
        "epochs": len(history),
        "best_val_task": min(row["val_task"] for row in history),
        "metrics": {split: summary(all_metrics(table, draws=settings.draws)) for split, table in tables.items()},
        **recall_report(tables["test"], chosen_on=tables["val"], draws=settings.draws),
        "labels_sha256": inputs["labels"],
        "splits_sha256": inputs["splits"],
        "condenser_init_sha256": inputs["condenser_init"],
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
    report["outputs"] = {name: commit.file_sha256(out / name) for name in _OUTPUTS}
    made_with = {"settings": only(HoldoutSettings, settings)}
    commit.write_json(out / "result.json", report, format="abbe-result", version=RESULT_VERSION, **made_with)
    checkpoint.remove(out / "checkpoint")


def model_card(model: Classifier, report: dict[str, Any]) -> str:
    """README.md of the model folder: the model, its training data, its test metrics, and references."""
    config = model.config
    rows = "\n".join(f"| {name} | {shown(value)} |" for name, value in report["metrics"]["test"].items())
    cited = "".join(f"- {reference}\n" for reference in model.condenser.references)
    missing = ", ".join(report["untrained_classes"])
    untrained = f"\nAverages include classes without a training slide: {missing}.\n" if missing else ""
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
{untrained}
Labels table: sha256 `{report["labels_sha256"]}`. For research; not a medical device.
{references}
```python
import abbe
model = abbe.load("this folder")
prediction = model(abbe.TokenBatch.pack([abbe.read_bag("slide.h5")]))
```
"""
