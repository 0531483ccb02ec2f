"""Which slides a run is about. Imports nothing heavy, so that `--help` costs little."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """Which slides, with which labels, in which splits."""

    features: Path
    """folder of <slide_id>.h5 feature files"""
    labels: Path
    """csv with slide_id, case_id, a label column, and optionally split (train | val | test)"""
    splits: Path | None = None
    """CLAM's splits_k.csv, where the labels have no column split"""
    label: str = "label"
    """column of the labels table to learn"""
    split_seed: int = 0
    """of the patient-level split, where the table has no column split"""
    allow_missing: bool = False
    """go on without slides whose features are missing, broken or empty; they are listed in the result"""
