"""Settings of evaluation. Imports nothing heavy, so that `--help` is fast."""

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
    """Settings of one run: cohort, model and evaluation."""

    draws: int = 1000
    """bootstrap samples of patients behind each interval"""
    resume: bool = True
    """resume from the checkpoint in the output folder; --no-resume starts again"""
    cpu: bool = False
    """train on the CPU even if an accelerator is available"""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """A model and a labelled cohort, or the predictions of an earlier run."""

    model: str | None = None
    """model folder, or hub id"""
    features: Path | None = None
    """folder of <slide_id>.h5 feature files"""
    labels: Path | None = None
    """csv with columns slide_id, case_id, a label column, and, with --split, split"""
    predictions: Annotated[Path | None, arg(name="from")] = None
    """predictions.parquet of an earlier run, instead of model, features and labels"""
    label: str = "label"
    """column of the labels table"""
    split: str | None = None
    """only the slides of this split (train | val | test); all slides otherwise"""
    draws: int = 1000
    """bootstrap samples of patients behind each interval"""
    allow_missing: bool = False
    """leave out slides whose features are missing, broken or empty; they are listed in the result"""
    allow_mixed: bool = False
    """evaluate on features of another kind than the model's: encoder version, mpp, patch size or overlap differ"""
    include_training: bool = False
    """also measure slides and patients the model was trained or chosen on; the result says so"""

    def __post_init__(self) -> None:
        given = (self.model, self.features, self.labels)
        if self.predictions is not None and any(given):
            raise ConfigError("use either --from, or --model, --features and --labels, not both")
        if self.predictions is None and not all(given):
            raise ConfigError("--model, --features and --labels are all required, unless --from is given")
