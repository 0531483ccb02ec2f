"""Options that select the slides of a run. Imports nothing heavy, to keep `--help` fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """Slides, labels and splits of a run."""

    features: Path
    """folder of <slide_id>.h5 feature files"""
    labels: Path
    """csv with slide_id, case_id, a label column, and optionally split (train | val | test)"""
    splits: Path | None = None
    """CLAM's splits_k.csv, if the labels table has no column split"""
    label: str = "label"
    """label column of the labels table"""
    split_seed: int = 0
    """seed of the patient-level split, used if the table has no column split"""
    allow_missing: bool = False
    """skip slides whose features are missing, broken or empty, and list them in the result"""
