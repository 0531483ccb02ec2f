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
    """Make a cohort with known truth from real labelled patches, arranged like the tissue of phantom slides.

    Example:
      abbe cohort mosaic lc25000 --out mosaic --bank.a lung_aca --bank.b lung_scc --bank.rest lung_n
      abbe train classify --features mosaic/mosaic_224px_0px_overlap/features_texture --labels mosaic/labels.csv --out r

    Patches that cannot be read are left out and named; the exit code is 1 then. Images of other classes are counted.
    """

    patches: tyro.conf.Positional[tuple[Path, ...]]
    """folders with a folder or zip per class, or such zips"""
    out: Path
    """folder of the cohort"""
    plan: CohortPlan = field(default_factory=CohortPlan)
    """task, slides and evidence"""
    bank: MosaicBankPlan = field(default_factory=MosaicBankPlan)
    """patches and how they are split"""
    bank_folder: Path | None = None
    """folder of the encoded patches, which cohorts and splits can share (default: OUT/bank)"""
    workers: int | None = None
    """processes that encode (default: one per core)"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.data.labelled_images import skipped_classes
        from abbe.phantom.mosaic import build_mosaic_bank
        from abbe.phantom.writer import write_cohort

        plan = replace(self.bank, patches=tuple(map(str, self.patches)))
        folder = self.bank_folder or self.out / "bank"
        bank = build_mosaic_bank(plan, folder, workers=self.workers)
        record = write_cohort(self.out, self.plan, bank)
        about = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
        broken, others = about["broken"], about["other_classes"]
        probe = record["difficulty"]["probe_a_b"]
        lines = [f"{record['slides']} mosaics in {self.out}; single-patch probe {plan.a}–{plan.b} {probe:.3f}"]
        lines += skipped_classes(others)
        lines += [f"left out: {name}: {reason}" for name, reason in broken.items()]
        result("\n".join(lines), {**record, "broken": broken, "other_classes": others}, json_output=self.json)
        return 1 if broken else 0
