"""`abbe cohort mosaic`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from abbe.console import result
from abbe.phantom.settings import CohortPlan, MosaicBankPlan


@dataclass(frozen=True)
class MosaicCohort:
    """Make a cohort with known truth from real labelled patches, laid out as tissue that never was.

    Example:
      abbe cohort mosaic lc25000 --out mosaic --bank.a lung_aca --bank.b lung_scc --bank.rest lung_n
      abbe train classify --features mosaic/mosaic_224px_0px_overlap/features_texture --labels mosaic/labels.csv --out r

    Patches that cannot be read are named, left out, and make the exit code 1. Images of other classes are counted.
    """

    patches: tyro.conf.Positional[tuple[Path, ...]]
    """folders with a folder or zip a class, or such zips"""
    out: Path
    """folder of the cohort"""
    plan: CohortPlan = field(default_factory=CohortPlan)
    """the task, the slides and their evidence"""
    bank: MosaicBankPlan = field(default_factory=MosaicBankPlan)
    """the patches and how they are split"""
    bank_folder: Path | None = None
    """where the encoded patches lie, to share them between cohorts and splits (default: OUT/bank)"""
    workers: int | None = None
    """processes that encode (default: one a core)"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.data.labelled_images import passed_over
        from abbe.phantom.mosaic import mosaic_bank
        from abbe.phantom.writer import write_cohort

        plan = replace(self.bank, patches=tuple(map(str, self.patches)))
        folder = self.bank_folder or self.out / "bank"
        rows = mosaic_bank(plan, folder, workers=self.workers)
        record = write_cohort(self.out, self.plan, rows)
        about = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
        broken, others = about["broken"], about["other_classes"]
        probe = record["difficulty"]["probe_a_b"]
        lines = [f"{record['slides']} mosaics in {self.out}; single-patch probe {plan.a}–{plan.b} {probe:.3f}"]
        lines += passed_over(others)
        lines += [f"left out: {name}: {reason}" for name, reason in broken.items()]
        result("\n".join(lines), {**record, "broken": broken, "other_classes": others}, json_output=self.json)
        return 1 if broken else 0
