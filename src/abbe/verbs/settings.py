"""Settings of `abbe demo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from abbe.phantom.settings import BankPlan, CohortPlan
from abbe.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Sizes and seeds of the demo."""

    out: Path = Path("demo")
    """output folder"""
    plan: CohortPlan = field(default_factory=lambda: CohortPlan(0.01, (140, 45, 90), 700))
    """the cohort the models are trained on"""
    bank: BankPlan = field(default_factory=lambda: BankPlan(normal=(5, 2, 3), tumour=(10, 4, 7)))
    """the rendered patches that the cohort is sampled from"""
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=20, lr=1e-3, early_stop=20, plateau_patience=20))
    """how each model is trained"""
    draws: int = 1000
    """bootstrap samples of patients behind each interval"""
    workers: int | None = None
    """processes (default: one per core)"""
