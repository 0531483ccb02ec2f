"""How a model is judged. Imports nothing heavy, so that `--help` costs little."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from abbe.data.settings import CohortSettings
from abbe.errors import ConfigError
from abbe.train.settings import ClassifierSettings


@dataclass(frozen=True, kw_only=True)
class HoldoutSettings(CohortSettings, ClassifierSettings):
    """A run: its cohort, its model, and how it is measured."""

    draws: int = 1000
    """bootstrap samples of patients behind each interval"""
    resume: bool = True
    """go on from this folder's checkpoint; --no-resume starts again"""
    cpu: bool = False
    """train on the CPU even where there is an accelerator"""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """A model and a labelled cohort, or predictions made before."""

    model: str | None = None
    """model folder, or hub id"""
    features: Path | None = None
    """folder of <slide_id>.h5 feature files"""
    labels: Path | None = None
    """csv with slide_id, case_id, a label column, and split where --split is given"""
    predictions: Annotated[Path | None, arg(name="from")] = None
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
            raise ConfigError("give either --from, or --model, --features and --labels")
        if self.predictions is None and not all(given):
            raise ConfigError("--model, --features and --labels go together; or give --from")
