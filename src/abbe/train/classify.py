"""`abbe train classify`: a labels table and a folder of features in, a model and its honest figures out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from accelerate import PartialState
from torch import nn
from torch.nn import functional as F
from tyro.conf import arg

from abbe import __version__
from abbe.cohorts.dataset import Cohort, Item, Labelled, SlideDataset, collate, gather
from abbe.cohorts.tables import read_labels, split_patients
from abbe.condensers import list_condensers
from abbe.console import result
from abbe.errors import ConfigError, TableError
from abbe.metrics.predictions import figures, summary, write_predictions
from abbe.models.classifier import Classifier, ClassifierConfig, Pooling
from abbe.models.hub import save_pretrained
from abbe.models.predict import predict
from abbe.store import commit
from abbe.train import checkpoint
from abbe.train.loop import Recipe, Step, fit
from abbe.train.warm_start import CondenserTrain, check_wish, origin_of, starting_model, take_over

DEFAULT_TOKENS = 32
ORIGIN = "condenser_init.json"


@dataclass(frozen=True)
class TrainClassify:
    """Train a slide classifier on features from disk, and evaluate it on held-out patients.

    Example:
      abbe train classify --features out/20x_256px_0px_overlap/features_texture --labels labels.csv --out run

    Writes run/model (load it with abbe.load), history.csv, predictions.parquet, result.json and config.json. The same
    command again goes on where it stopped; a finished run is not repeated.
    """

    features: Path
    """folder of <slide_id>.h5 feature files"""
    labels: Path
    """csv with slide_id, case_id, a label column, and optionally split (train | val | test)"""
    out: Path
    """folder of this run"""
    splits: Path | None = None
    """CLAM's splits_k.csv, where the labels have no column split"""
    label: str = "label"
    """column of the labels table to learn"""
    condenser: Annotated[str, arg(metavar="|".join(list_condensers()))] = "tcssa"
    """method that condenses a slide's patches"""
    tokens: int | float | None = None
    """budget: a count, or a keep rate in (0, 1]; 32, or what --condenser-init has, unless given"""
    condenser_options: tuple[str, ...] = ()
    """further options of the condenser, as name=value, e.g. aux_weight=0.01"""
    condenser_init: str | None = None
    """classifier (folder or hub id) whose condenser, with its scale of features, this one starts from"""
    condenser_train: CondenserTrain = "joint"
    """joint: the condenser learns with the head; frozen: it stays as --condenser-init gave it"""
    pooling: Pooling = "mean"
    """how the head pools tokens; abmil, clam, dsmil and transmil are torchmil's"""
    standardize: bool = True
    """bring features to zero mean and unit spread by the training patches; --no-standardize takes them as they are"""
    recipe: Recipe = field(default_factory=Recipe)
    """how the model is trained"""
    split_seed: int = 0
    """of the patient-level split, where the table has no column split"""
    draws: int = 1000
    """bootstrap samples of patients behind each interval"""
    allow_missing: bool = False
    """go on without slides whose features are missing, broken or empty; they are listed in the result"""
    resume: bool = True
    """go on from this folder's checkpoint; --no-resume starts again"""
    cpu: bool = False
    """train on the CPU even where there is an accelerator"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        report = train_classifier(self)
        main = PartialState().is_main_process
        if PartialState().num_processes > 1:  # a process that leaves while another still talks to it aborts it
            PartialState().wait_for_everyone()
            PartialState().destroy_process_group()
        if not main:
            return 0
        test = report["figures"]["test"]
        lines = [f"{name}: {_shown(value)}" for name, value in test.items()]
        text = "\n".join([f"test slides: {report['slides']['test']}", *lines, f"model: {self.out / 'model'}"])
        result(text, report, json_output=self.json)
        return 0


def train_classifier(run: TrainClassify) -> dict[str, Any]:
    """Train, evaluate, write; return what result.json holds. A finished run of the same settings is read back.

    Under `accelerate launch` all processes train; the main one evaluates and writes, the others wait and return {}.
    """
    settings = describe(run)
    processes = PartialState(cpu=run.cpu)
    finished = run.out / "result.json"
    _check_folder(run, settings)
    if run.resume and commit.is_done(finished):
        return dict(json.loads(finished.read_text(encoding="utf-8")))
    check_wish(run.condenser_train, run.condenser_init)
    table, cohort = load_cohort(run)
    start = None
    if run.condenser_init is not None:
        start = starting_model(
            run.condenser_init, run.condenser, width=cohort.width, encoder=cohort.encoder, standardize=run.standardize
        )
    config = ClassifierConfig(
        dim=cohort.width,
        classes=cohort.classes,
        condenser=run.condenser,
        condenser_options={
            **(start.config.condenser_options if start else {"tokens": DEFAULT_TOKENS}),
            **({} if run.tokens is None else {"tokens": run.tokens}),
            **parse_options(run.condenser_options),
        },
        pooling=run.pooling,
        encoder=cohort.encoder,
    )
    origin = None if run.condenser_init is None else origin_of(run.condenser_init, run.out / ORIGIN, resume=run.resume)
    config = _tried(run, config, cohort.splits["train"][0], start)
    processes.wait_for_everyone()  # until all have seen whether the folder is free
    if processes.is_main_process:
        commit.write_json(run.out / "config.json", settings, format="abbe-config")
        commit.write_text(run.out / "splits.csv", table.to_csv(index=False), format="labels")
        if origin is not None:
            commit.write_json(run.out / ORIGIN, origin, format="abbe-origin")
    train = SlideDataset(cohort.splits["train"])

    def build() -> Classifier:
        return _model(run, config, start, (train[row][0].features for row in range(len(train))))

    model, history = fit(
        build,
        classify_loss,
        train,
        SlideDataset(cohort.splits["val"]),
        run.recipe,
        folder=run.out / "checkpoint",
        resume=run.resume,
        cpu=run.cpu,
        description=f"training {run.condenser}",
    )
    assert isinstance(model, Classifier)
    if not processes.is_main_process:
        processes.wait_for_everyone()
        return {}
    report = _evaluate(run, model, table, cohort, history)
    commit.write_text(run.out / "history.csv", pd.DataFrame(history).to_csv(index=False), format="history")
    save_pretrained(model, run.out / "model", card=model_card(model, report))
    # Written last: a run with a result is a run that is whole.
    commit.write_json(finished, report, format="abbe-result", settings=settings)
    checkpoint.remove(run.out / "checkpoint")
    processes.wait_for_everyone()
    return report


def _model(
    run: TrainClassify, config: ClassifierConfig, start: Classifier | None, bags: Iterable[torch.Tensor]
) -> Classifier:
    """A classifier before training: condenser and scale of `start`, or a scale measured on bags [N, D]."""
    model = Classifier(config)
    if start is not None:
        take_over(model, start, frozen=run.condenser_train == "frozen")
    elif run.standardize:
        model.scaler.measure(bags)
    return model


def _tried(run: TrainClassify, config: ClassifierConfig, item: Item, start: Classifier | None) -> ClassifierConfig:
    """The configuration, with the budget as the condenser understood it, once a few patches of a slide went through.

    So options that cannot be met, and weights that do not fit, are refused before anything is written.
    """
    bag, label = SlideDataset([item])[0]
    few = dataclasses.replace(bag, features=bag.features[:64], coords=None if bag.coords is None else bag.coords[:64])
    trial = _model(run, config, start, [few.features])
    with torch.no_grad():
        loss = classify_loss(trial.train(), collate([(few, label)])).loss_sum
    if not bool(torch.isfinite(loss)):
        raise ConfigError(
            f"{config.condenser} with {config.condenser_options}: the loss is {float(loss)} before any training; "
            "an option, or the scale of features taken as they are, is out of range"
        )
    return dataclasses.replace(config, condenser_options={**config.condenser_options, "tokens": trial.condenser.tokens})


def classify_loss(model: nn.Module, batch: Labelled) -> Step:
    """Cross-entropy of the slides' classes, plus what the condenser and the pooling add, and the condenser's own
    predictions: unweighted.
    """
    prediction = model(batch.bags)
    n = len(batch.labels)
    task = F.cross_entropy(prediction.logits.float(), batch.labels, reduction="sum")
    extra = sum((loss * n for loss in prediction.condensed.losses.values()), task.new_zeros(()))
    for logits in prediction.auxiliary.values():
        extra = extra + F.cross_entropy(logits.float(), batch.labels, reduction="sum")
    if prediction.instance_loss is not None:
        extra = extra + prediction.instance_loss(batch.labels)
    return Step(task + extra, task, n, prediction.condensed.metrics)


def load_cohort(run: TrainClassify) -> tuple[pd.DataFrame, Cohort]:
    """(labels with a split, the slides that can be used). Raises TableError where a split would be empty."""
    table = read_labels(run.labels, label=run.label, splits=run.splits)
    if "split" not in table:
        table = split_patients(table, label=run.label, seed=run.split_seed)
    cohort = gather(table, run.features, label=run.label, allow_missing=run.allow_missing)
    if len(cohort.classes) < 2:
        raise TableError(f"{run.labels}: column {run.label!r} has one value only, {cohort.classes[0]!r}")
    for split, items in cohort.splits.items():
        if not items:
            raise TableError(f"{run.labels}: no usable slide in split {split!r}")
    return table, cohort


def parse_options(given: tuple[str, ...]) -> dict[str, Any]:
    """name=value pairs; a value is read as JSON where it is JSON (numbers, true, false), else as a string."""
    options: dict[str, Any] = {}
    elsewhere = {"tokens": "the budget is --tokens", "dim": "the width is that of the features"}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"condenser option {pair!r}: expected name=value, such as aux_weight=0.01")
        if name in elsewhere:
            raise ConfigError(f"condenser option {pair!r}: {elsewhere[name]}")
        if name in options:
            raise ConfigError(f"condenser option {name!r} is given twice")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def describe(run: TrainClassify) -> dict[str, Any]:
    """The full configuration as plain JSON values."""
    return dict(json.loads(json.dumps(dataclasses.asdict(run), default=str)))


def model_card(model: Classifier, report: dict[str, Any]) -> str:
    """README.md of the model folder: what it is, what it was trained on, and how well it does."""
    config = model.config
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in report["figures"]["test"].items())
    return f"""---
library_name: abbe
tags: [computational-pathology, whole-slide-image]
---
# {config.condenser} slide classifier

Classes: {", ".join(config.classes)}. Features: {config.encoder or "unnamed encoder"}, {config.dim} wide.
Condenser: `{config.condenser}` {json.dumps(config.condenser_options)}, {config.pooling} pooling. Seed {report["seed"]}.

Trained on {report["slides"]["train"]} slides, stopped by {report["slides"]["val"]}; measured on
{report["slides"]["test"]} slides of {report["patients"]["test"]} other patients:

| figure | value, 95 % interval over patients |
|---|---|
{rows}

Labels table: sha256 `{report["labels_sha256"]}`. For research; not a medical device.

```python
import abbe
model = abbe.load("this folder")
prediction = model(abbe.TokenBatch.pack([abbe.read_bag("slide.h5")]))
```
"""


def _evaluate(
    run: TrainClassify, model: Classifier, table: pd.DataFrame, cohort: Cohort, history: list[dict[str, float]]
) -> dict[str, Any]:
    tables = {split: predict(model, cohort.splits[split], split=split) for split in ("val", "test")}
    write_predictions(run.out / "predictions.parquet", pd.concat(tables.values(), ignore_index=True))
    return {
        "abbe": __version__,
        "condenser": run.condenser,
        "tokens": model.condenser.tokens,
        "condenser_train": run.condenser_train,
        "condenser_init_sha256": json.loads((run.out / ORIGIN).read_text())["sha256"] if run.condenser_init else None,
        "pooling": run.pooling,
        "seed": run.recipe.seed,
        "slides": {split: len(items) for split, items in cohort.splits.items()},
        "patients": {split: _patients(items) for split, items in cohort.splits.items()},
        "left_out": cohort.left_out,
        "outside_splits": table.attrs.get("outside_splits", []),
        "epochs": len(history),
        "best_val_task": min(row["val_task"] for row in history),
        "figures": {split: summary(figures(table, draws=run.draws)) for split, table in tables.items()},
        "labels_sha256": commit.file_sha256(run.labels),
        "splits_sha256": commit.file_sha256(run.splits) if run.splits else None,
        "predictions_sha256": commit.file_sha256(run.out / "predictions.parquet"),
    }


def _check_folder(run: TrainClassify, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds a run of other settings: resuming it would mix two experiments."""
    before = run.out / "config.json"
    if not (run.resume and before.is_file()):
        return
    old, new = (_in_effect(values) for values in (json.loads(before.read_text(encoding="utf-8")), settings))
    free = ("json", "resume", "out", "cpu")
    for key in sorted((set(old) | set(new)) - set(free)):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"{before}: this folder holds a run with {key}={old.get(key)!r}, not {new.get(key)!r}; "
                "use another --out, or --no-resume to start again here"
            )


def _in_effect(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with what they leave open: a run of an earlier version has fewer keys, and is the same run."""
    fields = dataclasses.fields(TrainClassify)
    standard = {item.name: item.default for item in fields if item.default is not dataclasses.MISSING}
    full = {**json.loads(json.dumps(standard, default=str)), **settings}
    if full["tokens"] is None and full["condenser_init"] is None:
        full["tokens"] = DEFAULT_TOKENS
    return full


def _patients(items: list[Item]) -> int:
    return len({item.case_id for item in items})


def _shown(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "not defined (a class is missing)"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
