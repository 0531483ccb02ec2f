"""Options that select the slides of a run. Imports nothing heavy, to keep `--help` fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

AllowedLabels = Literal["na", "alike", "untrained"]


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
    allow_mixed: bool = False
    """train on features of different kinds together: encoder version, mpp, patch size or overlap differ"""
    allow_labels: tuple[AllowedLabels, ...] = ()
    """labels to accept that are refused otherwise: na (a class such as NA or unknown), alike (classes that differ only
    in case, spaces or as numbers, such as 0 and 0.0), untrained (a class without training slides)"""
