"""`abbe cohort phantom`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from abbe.console import result
from abbe.phantom.settings import BankPlan, CohortPlan


@dataclass(frozen=True)
class PhantomCohort:
    """Make a cohort with known truth: features in TRIDENT layout, labels.csv, and the truth of every patch.

    Example:
      abbe cohort phantom --out cohort --plan.fraction 0.01
      abbe train classify --features cohort/20x_256px_0px_overlap/features_texture --labels cohort/labels.csv --out run
      abbe cohort phantom --out arrangement --plan.task spatial --plan.patches 300
      abbe cohort phantom --out slides --level pixels --plan.slides 4 2 2 --plan.patches 300

    Also writes reports, questions and captions composed from the truth.
    """

    out: Path
    """folder of the cohort"""
    plan: CohortPlan = field(default_factory=CohortPlan)
    """task, slides and evidence"""
    level: Literal["features", "pixels"] = "features"
    """features: rows drawn from the encoded bank, seconds per hundred slides; pixels: whole-slide images, tens of
    seconds per slide"""
    bank: BankPlan = field(default_factory=BankPlan)
    """rendered patches that features are drawn from; at pixel level only sites and seed matter"""
    bank_folder: Path | None = None
    """folder of the rendered bank, which cohorts can share (default: OUT/bank)"""
    texts: bool = True
    """write reports, captions and questions"""
    workers: int | None = None
    """processes that render (default: one per core)"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.phantom.bank import build_bank
        from abbe.phantom.writer import write_cohort, write_pixel_cohort

        if self.level == "pixels":
            record = write_pixel_cohort(self.out, self.plan, self.bank, texts=self.texts, workers=self.workers)
            text = f"{record['slides']} slides in {self.out / 'slides'}"
        else:
            bank = build_bank(self.bank, self.bank_folder or self.out / "bank", workers=self.workers)
            record = write_cohort(self.out, self.plan, bank, texts=self.texts)
            probe = record["difficulty"]["probe_a2_b2"]
            text = f"{record['slides']} slides in {self.out}; single-patch probe a2–b2 {probe:.3f}"
        result(text, record, json_output=self.json)
        return 0
