"""Inspect files written by Abbe: models, checkpoints, runs, cohorts, tokens, predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from abbe.data.textfiles import read_json
from abbe.errors import CheckpointError, TableError
from abbe.inspection.finding import Finding, InspectSettings, signed
from abbe.metrics.predictions import all_metrics, class_names, read_predictions
from abbe.models.hub import WEIGHTS, load
from abbe.models.record import SEEN
from abbe.phantom.settings import with_version
from abbe.store import commit
from abbe.store.commit import printable
from abbe.store.kind import Kind
from abbe.store.tokens import FORMAT as TOKENS
from abbe.store.tokens import read_tokens
from abbe.train import checkpoint

_SHOWN = 20  # values shown per record


def model(path: Path, run: InspectSettings) -> Finding:
    """Inspect a model folder."""
    loaded = load(path)
    config = loaded.config
    facts = {
        "task": "slide classifier",
        "classes": ", ".join(config.classes),
        "condenser": f"{config.condenser} {json.dumps(config.condenser_options)}",
        "encoder": config.encoder,
        "width": config.dim,
        "parameters": sum(p.numel() for p in loaded.parameters()),
    }
    problems: list[str] = []
    if loaded.record is None:
        problems.append(
            "it is not recorded which slides it was trained on, nor how they were encoded, so neither can be checked; "
            "train it again"
        )
    else:
        facts["features"] = str(loaded.record.kind)
        facts["slides it has seen"] = ", ".join(f"{split} {loaded.record.count(split)}" for split in SEEN)
    if config.encoder is None:
        problems.append(
            "the patch encoder is not stated, so features of another encoder cannot be refused; train it again"
        )
    whole, said = signed(path / WEIGHTS)
    return Finding(printable(path), "model", facts | whole, problems + said)


def training(path: Path, run: InspectSettings) -> Finding:
    """Inspect a training checkpoint."""
    found = checkpoint.load(path)
    if found is None:
        raise CheckpointError(f"{path}: no complete checkpoint: the run was stopped while it wrote the first one")
    tensors, values = found
    facts = {name: value for name, value in values.items() if isinstance(value, int | float | str)}
    facts["tensors"] = len(tensors)
    problems = ["the run is unfinished; repeat its command to resume it"]
    return Finding(printable(path), "training checkpoint", facts, problems)


def trained(path: Path, run: InspectSettings) -> Finding:
    """Inspect the folder of a finished training run."""
    record = path / "result.json"
    facts = _plain_values(_object(record))
    whole, said = signed(record)
    return Finding(printable(path), "training run", facts | whole, said)


def cohort(path: Path, run: InspectSettings) -> Finding:
    """Inspect a cohort with known truth."""
    record = path / "cohort.json"
    content = _object(record)
    facts = _plain_values(content)
    if content.get("filling") == "phantom":
        facts["phantom version"] = with_version(content["parameters"]["bank"])["phantom_version"]
    problems = []
    for name in ("labels.csv", "truth/patches.parquet", "reports.csv", "questions.csv"):
        if (path / name).exists() and not commit.is_done(path / name):
            problems.append(f"{name} is {commit.state(path / name)}; remove it and create the cohort again")
    whole, said = signed(record)
    return Finding(printable(path), "cohort with known truth", facts | whole, problems + said)


def is_tokens(path: Path) -> bool:
    """Whether the sidecar of a safetensors file says that it holds a condensed slide."""
    sidecar = commit.read_sidecar(path)
    return sidecar is not None and sidecar.get("format") == TOKENS


def tokens(path: Path, run: InspectSettings) -> Finding:
    """Inspect the tokens of one slide, as written by `abbe condense`."""
    found = read_tokens(path)
    facts: dict[str, Any] = {
        "slide": found.about["slide_id"],
        "condenser": found.about["condenser"],
        "tokens": f"{int(found.mask.sum())} in use of {len(found.tokens)}, {found.tokens.shape[1]} wide",
        "patches": len(found.coords),
        "dropped": int((found.main_token < 0).sum()),
        "features": str(Kind(**found.about["features"])) if "features" in found.about else None,
        "patch size, level-0 pixels": found.patch_size_level0,
        "probabilities": found.about["probabilities"],
        "model": found.about.get("model"),
    }
    whole, said = signed(path)
    return Finding(printable(path), "condensed slide", facts | whole, said)


def parquet(path: Path, run: InspectSettings) -> Finding:
    """Inspect a parquet table: predictions, or the patch-level truth of a cohort."""
    sidecar = commit.read_sidecar(path)
    if sidecar is not None and sidecar.get("format") != "predictions":
        table = pd.read_parquet(path)
        whole, said = signed(path)
        facts = {"rows": len(table), "columns": ", ".join(map(str, table.columns))}
        return Finding(printable(path), f"table in format {sidecar.get('format')}", facts | whole, said)
    return predictions(path)


def predictions(path: Path) -> Finding:
    """Inspect a table of predictions and compute its metrics."""
    table = read_predictions(path)
    facts: dict[str, Any] = {"slides": len(table), "patients": table["case_id"].nunique()}
    facts["classes"] = ", ".join(class_names(table))
    for split, part in table.groupby("split"):
        facts[f"{split!s} ({len(part)} slides)"] = ", ".join(
            f"{name} {value}" for name, value in all_metrics(part, draws=200).items()
        )
    whole, said = signed(path)
    return Finding(printable(path), "predictions", facts | whole, said)


def _object(path: Path) -> dict[str, Any]:
    value, _ = read_json(path)
    if not isinstance(value, dict):
        raise TableError(f"{path}: expected an object, found {str(value)[:80]}; create the run or cohort again")
    return value


def _plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """Scalar values of a record; nested keys are joined with dots."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= {f"{key}.{name}": item for name, item in _plain_values(value).items()}
        elif not isinstance(value, list):
            out[key] = value
    return dict(list(out.items())[:_SHOWN])
