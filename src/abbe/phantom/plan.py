"""What a cohort with known truth is asked to be, and the patients that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from abbe.data import SPLITS
from abbe.phantom.draw import number, pick
from abbe.phantom.settings import CohortPlan

METASTASIS_RISK = {1: 0.1, 2: 0.35, 3: 0.6}
"""probability that a patient whose tumour has this grade has a metastasis"""
_NECROSIS = (0.02, 0.40)  # share of a slide in a mixture cohort
_WITHOUT_TUMOUR = 4  # of a mixture cohort's patients, one in so many


@dataclass(frozen=True)
class Patient:
    """One patient. grade: 0 without a tumour.  pattern: where lymphocytes lie in the spatial task."""

    case_id: str
    site: int
    setting: int
    subtype: str
    grade: int
    pattern: str
    metastasis: bool
    seed: tuple[int, ...]


def slide_id(split: int, count: int) -> str:
    """The id of the `count`-th slide of a split."""
    return f"{SPLITS[split]}-{count:04d}"


def patients(plan: CohortPlan, split: int, *, sites: int, settings: int) -> list[Patient]:
    """The patient of each slide of a split; labels that belong to patients take turns, so they are balanced to one.

    No patient has all slides of a split, so both labels are in every split.
    """
    slides = plan.slides[split]
    rng = np.random.default_rng([plan.seed, split])
    of_slide: list[Patient] = []
    count = 0
    while len(of_slide) < slides:
        case_id = f"{SPLITS[split]}-patient-{count:04d}"
        key = (plan.seed, case_id)
        site, setting = int(rng.integers(sites)), int(rng.integers(settings))
        grade = int(rng.integers(1, 4))
        subtype = "ab"[count % 2] if plan.task == "needle" else pick("ab", *key, "subtype")
        if plan.task == "mixture" and number(*key, "tumour") % _WITHOUT_TUMOUR == 0:
            subtype, grade = "", 0
        metastasis = number(*key, "metastasis") / 2**256 < METASTASIS_RISK.get(grade, 0.0)
        pattern = ("inside", "margin")[count % 2]
        patient = Patient(case_id, site, setting, subtype, grade, pattern, metastasis, (plan.seed, split, count))
        of_slide += [patient] * min(int(rng.integers(1, 3)), slides - 1)
        count += 1
    return of_slide[:slides]


def patches_of(plan: CohortPlan, patient: Patient, count: int) -> tuple[np.random.Generator, int]:
    """The generator of a patient's slide, the `count`-th of its split, and the number of its patches."""
    rng = np.random.default_rng([*patient.seed, count])
    return rng, int(rng.integers(round(0.75 * plan.patches), round(1.25 * plan.patches) + 1))


def necrosis_shares(plan: CohortPlan, split: int) -> np.ndarray:
    """The share of necrosis of each slide of a mixture cohort, float64 [slides], uniform over 2 % to 40 %.

    One from each of as many equal parts of that range as there are slides, so that every split has slides on both
    sides of the median.
    """
    slides = plan.slides[split]
    rng = np.random.default_rng([plan.seed, split, 0, 0, 1])
    low, high = _NECROSIS
    return low + (high - low) * (rng.permutation(slides) + rng.random(slides)) / slides
