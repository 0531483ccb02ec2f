"""What each benchmark measures, and how. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from abbe.condensers import list_condensers
from abbe.phantom.settings import BankPlan, MosaicBankPlan

METHODS = arg(metavar=f"[{'|'.join(list_condensers())} ...]")


@dataclass(frozen=True, kw_only=True)
class NeedleSettings:
    """What `abbe bench needle` measures, and how."""

    out: Path
    """working folder: bank, cohorts, runs"""
    condensers: Annotated[tuple[str, ...], METHODS] = ("tcssa", "random", "mean", "none")
    """methods to compare; if `none` is one of them, the others are also compared with it"""
    tokens: int = 32
    """budget of the methods that have one"""
    sweep: bool = False
    """sweep each method over its `grid` instead of one budget"""
    fractions: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    """evidence: shares of a slide's patches that are tumour"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """training seeds"""
    rates: tuple[float, ...] = (3e-4, 1e-3)
    """learning rates to choose from on validation slides"""
    tune_at: float = 0.01
    """fraction at which the learning rates are chosen"""
    slides: tuple[int, int, int] = (300, 100, 200)
    """slides for train, val and test"""
    patches: int = 2000
    """patches per slide"""
    epochs: int = 25
    """epochs of every run"""
    bank: BankPlan = field(default_factory=BankPlan)
    """the rendered patches the cohorts are drawn from"""
    workers: int | None = None
    """parallel runs (default: one per core)"""
    draws: int = 1000
    """bootstrap samples behind each interval"""


@dataclass(frozen=True, kw_only=True)
class SlotsSettings:
    """What `abbe bench slots` measures, and how."""

    out: Path
    """working folder: banks, cohorts, runs"""
    weights: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0)
    """values of λ"""
    constant: tuple[float, ...] = (0.0,)
    """values of λ that are also trained with dead_slots=constant, as in the authors' code"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """each has its own bank split, cohort and initialisation"""
    fraction: float = 0.01
    """evidence: share of a slide's patches that are tumour"""
    artefacts: float = 0.05
    """share of a slide's patches that are artefacts"""
    slides: tuple[int, int, int] = (160, 50, 120)
    """slides for train, val and test"""
    patches: int = 600
    """patches per slide"""
    epochs: int = 20
    """epochs of every run at a constant learning rate; the best epoch on validation slides is kept"""
    rate: float = 1e-3
    """learning rate"""
    tokens: int = 32
    """slots"""
    standardize: bool = True
    """standardize features, as `abbe train classify` does; --no-standardize leaves them as they are"""
    bank: BankPlan = field(default_factory=lambda: BankPlan(normal=(8, 3, 6), tumour=(14, 5, 10)))
    """the rendered patches"""
    mosaic: tuple[Path, ...] = ()
    """folders or zips of real labelled patches, to repeat the study on mosaics"""
    mosaic_bank: MosaicBankPlan = field(default_factory=MosaicBankPlan)
    """what the classes of these patches are"""
    workers: int | None = None
    """parallel runs (default: one per core)"""
    draws: int = 1000
    """bootstrap samples behind each interval"""


@dataclass(frozen=True, kw_only=True)
class OpsSettings:
    """What `abbe bench ops` measures, and how."""

    patches: int = 100_000
    """patches of the slide, N"""
    width: int = 1024
    """width of a feature, D"""
    slots: int = 32
    """slots, K"""
    rounds: int = 7
    """timed rounds, ours and dense in turn, after one warm-up round"""


@dataclass(frozen=True, kw_only=True)
class TextureSettings:
    """What `abbe bench texture` measures, and how."""

    patches: Path | None = None
    """LC25000 as a folder or zip with index.csv, for a linear probe; without it only the speed is measured"""
    repeats: int = 10
    """repetitions of the probe's cross-validation"""
    per_group: int = 2
    """patches of each group that the probe reads after changes such as JPEG and blur"""
    side: int = 256
    """side of a patch in pixels"""
    per_class: int = 4
    """patches of each of the twelve classes per round"""
    rounds: int = 9
    """timed rounds, after one warm-up round"""
