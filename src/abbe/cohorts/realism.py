"""`abbe cohort realism`: rendered patches beside real ones, for the eye (a montage) and for a linear probe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from abbe.cohorts.bank import SETTINGS
from abbe.cohorts.draw import shuffled
from abbe.cohorts.labelled import expand, find_images, read_images, sources_sha256
from abbe.cohorts.mosaic import MosaicBankPlan, index_of
from abbe.cohorts.tissue import MPP, TISSUE_CLASSES, render, site_stain
from abbe.console import progress, result
from abbe.errors import InputError, SlideError
from abbe.slides.patch_encoders import create_patch_encoder
from abbe.store import commit

FOLDS = 5
_SHOWN = 8
_GAP = 4
_QUALITY = 90

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Realism:
    """Show rendered patches beside real ones, and measure how surely a linear probe tells them apart.

    Example:
      abbe cohort realism lc25000 --out realism

    Writes OUT/phantom-and-real.png and OUT/realism.json. Both kinds are patches of one size and have been through
    JPEG; rendered ones of one class, site and stain setting are one group, real ones have the groups of index.csv, and
    no group is in two folds.
    """

    patches: MosaicPatches
    """folders with a folder or zip a class, or such zips"""
    out: Path
    """folder of montage and record"""
    classes: tuple[str, ...] = ("lung_aca", "lung_scc", "lung_n")
    """classes of real patches to use"""
    per_group: int = 4
    """patches of each group, real or rendered"""
    sites: int = 3
    """sites of rendered patches"""
    patch_size: int = 224
    """side of a patch in pixels, real or rendered"""
    seed: int = 0
    """of what is rendered, chosen and folded"""
    encoder: str = "texture"
    """patch encoder the probe reads"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        found = realism(self)
        value = found["balanced_accuracy"]
        text = f"rendered or real: balanced accuracy {value:.3f} over {FOLDS} folds ({found['patches']} patches)"
        result(text, found, json_output=self.json)
        return 0
