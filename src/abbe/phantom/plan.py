"""The patients and slides of a cohort, as they follow from its plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from abbe.data import SPLITS
from abbe.phantom.draw import number, pick
from abbe.phantom.settings import CohortPlan

METASTASIS_RISK = {1: 0.1, 2: 0.35, 3: 0.6}
"""probability of a metastasis, by the grade of the patient's tumour"""
_NECROSIS = (0.02, 0.40)  # smallest and largest share of a slide in a mixture cohort
_TUMOUR_FREE = 4  # one in four patients of a mixture cohort has no tumour


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


@dataclass(frozen=True)
class PlannedSlide:
    """A slide to be made. split: index in SPLITS.  index: of the slide within its split.

    necrosis: share of its patches that are necrosis; used by the mixture task alone.
    """

    split: int
    index: int
    patient: Patient
    necrosis: float

    @property
    def slide_id(self) -> str:
        return f"{SPLITS[self.split]}-{self.index:04d}"


def planned_slides(plan: CohortPlan, *, sites: int, settings: int) -> list[PlannedSlide]:
    """Every slide of a cohort, by split."""
    return [
        PlannedSlide(split, index, patient, float(necrosis))
        for split in range(len(SPLITS))
        for index, (patient, necrosis) in enumerate(
            zip(patients(plan, split, sites=sites, settings=settings), necrosis_shares(plan, split), strict=True)
        )
    ]


def patients(plan: CohortPlan, split: int, *, sites: int, settings: int) -> list[Patient]:
    """The patient of each slide of a split.

    Labels that belong to patients alternate, so their counts differ by at most one. No patient has all slides of a
    split, so every split has both labels.
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
        if plan.task == "mixture" and number(*key, "tumour") % _TUMOUR_FREE == 0:
            subtype, grade = "", 0
        metastasis = number(*key, "metastasis") / 2**256 < METASTASIS_RISK.get(grade, 0.0)
        pattern = ("inside", "margin")[count % 2]
        patient = Patient(case_id, site, setting, subtype, grade, pattern, metastasis, (plan.seed, split, count))
        of_slide += [patient] * min(int(rng.integers(1, 3)), slides - 1)
        count += 1
    return of_slide[:slides]


def necrosis_shares(plan: CohortPlan, split: int) -> np.ndarray:
    """The share of necrosis of each slide of a mixture cohort, float64 [slides], uniform over 2 % to 40 %.

    The range is cut into as many equal parts as there are slides and each part gives one share, so that every split
    has slides on both sides of the median.
    """
    slides = plan.slides[split]
    rng = np.random.default_rng([plan.seed, split, 0, 0, 1])
    low, high = _NECROSIS
    return low + (high - low) * (rng.permutation(slides) + rng.random(slides)) / slides
