"""Options of cohorts and banks. Imports nothing heavy, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from abbe.data import SPLITS
from abbe.errors import InputError

PHANTOM_VERSION = 2
"""version of what phantoms show; those that do not state one are of version 1, whose bank patches saw no JPEG"""
SPLITS_OF_GROUPS = 5
"""ways to split the groups of a mosaic's patches"""
LABELS = {"needle": ("a", "b"), "mixture": ("low", "high"), "spatial": ("margin", "inside")}
"""both labels of each task; scores rise towards the second"""
_SPATIAL_DEPOSIT = 60  # patches a spatial deposit needs on average to have an inside


@dataclass(frozen=True)
class CohortPlan:
    """A cohort. Patients have one or two slides; a patient has one site, one stain setting, at most one tumour."""

    fraction: float = 0.01
    """needle: share of a slide's patches that are tumour (at least one patch)"""
    slides: tuple[int, int, int] = (300, 100, 200)
    """slides for train, val and test"""
    patches: int = 2000
    """patches per slide on average; each slide has this ± 25 %"""
    seed: int = 0
    """seed of patients, layouts and draws from the bank"""
    task: Literal["needle", "mixture", "spatial"] = "needle"
    """needle: the subtype of a small deposit; mixture: more necrosis than the median slide or less; spatial:
    lymphocytes inside the tumour or along its margin"""
    deposit: float = 0.2
    """mixture: largest share of a slide that is tumour; spatial: share that is tumour with its lymphocytes"""

    def __post_init__(self) -> None:
        if self.task not in LABELS:
            raise InputError(f"--plan.task must be one of {', '.join(LABELS)}, got {self.task!r}")
        if not 0 < self.fraction < 1:
            raise InputError(f"--plan.fraction must lie in (0, 1), got {self.fraction}")
        if not 0 < self.deposit <= 0.5:
            raise InputError(f"--plan.deposit must lie in (0, 0.5], got {self.deposit}")
        if self.task == "spatial" and self.deposit * self.patches < _SPATIAL_DEPOSIT:
            raise InputError(
                f"the spatial task needs --plan.deposit x --plan.patches of at least {_SPATIAL_DEPOSIT}, so that a "
                f"deposit has an inside; got {self.deposit:g} x {self.patches}"
            )
        if len(self.slides) != len(SPLITS) or min(self.slides) < 2:
            raise InputError(f"--plan.slides needs at least two for each of {', '.join(SPLITS)}, got {self.slides}")
        _at_least(16, "--plan.patches", self.patches)
        _at_least(0, "--plan.seed", self.seed)


@dataclass(frozen=True)
class BankPlan:
    """A bank of rendered patches. A cell is one class of one site in one of the site's three stain settings."""

    sites: int = 3
    """sites, each with its own stain and texture"""
    normal: tuple[int, int, int] = (12, 4, 8)
    """patches per cell for train, val and test, of each class without tumour"""
    tumour: tuple[int, int, int] = (20, 6, 14)
    """patches per cell for train, val and test, of each tumour class; more, since labels depend on them"""
    seed: int = 0
    """seed of sites, stains and textures"""
    split: int = 0
    """which bank of that seed; banks of different split share no patch"""
    encoder: str = "texture"
    """patch encoder"""

    def __post_init__(self) -> None:
        for name in ("normal", "tumour"):
            sizes = getattr(self, name)
            if len(sizes) != len(SPLITS) or min(sizes) < 1:
                raise InputError(f"--bank.{name} needs at least one patch for each of {', '.join(SPLITS)}, got {sizes}")
        _at_least(1, "--bank.sites", self.sites)
        _at_least(0, "--bank.seed", self.seed)
        _at_least(0, "--bank.split", self.split)


@dataclass(frozen=True)
class MosaicBankPlan:
    """A bank of real patches. A class is a folder or zip of patches."""

    patches: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """folders and zips of labelled patches"""
    a: str = "lung_aca"
    """class that is the tumour of subtype a"""
    b: str = "lung_scc"
    """class that is the tumour of subtype b"""
    rest: tuple[str, ...] = ("lung_n",)
    """classes without tumour; the mixture task needs one named necrosis, the spatial task one named lymphocytes"""
    index: str | None = None
    """csv with class, file, group (default: index.csv in a folder of patches; if there is none, each patch is a
    group)"""
    split: int = 0
    """which of five ways to split the groups; a fifth each is for val and test, and no two share a test group"""
    patch_size: int = 224
    """side of a patch in pixels; images of another size are refused"""
    resize: bool = False
    """resample square images of another size instead of refusing them"""
    mpp: float | None = None
    """microns per pixel, if known"""
    seed: int = 0
    """seed of the order in which groups are split"""
    encoder: str = "texture"
    """patch encoder"""

    def __post_init__(self) -> None:
        names = (self.a, self.b, *self.rest)
        if not self.rest or len(set(names)) < len(names):
            raise InputError(
                f"--bank.a, --bank.b and --bank.rest must name different classes, at least one each; got {names}"
            )
        if not 0 <= self.split < SPLITS_OF_GROUPS:
            raise InputError(f"--bank.split must be 0 to {SPLITS_OF_GROUPS - 1}, got {self.split}")
        if self.mpp is not None and self.mpp <= 0:
            raise InputError(f"--bank.mpp must be positive, got {self.mpp}")
        _at_least(16, "--bank.patch-size", self.patch_size)
        _at_least(0, "--bank.seed", self.seed)


@dataclass(frozen=True, kw_only=True)
class RealismSettings:
    """The patches to render, the real patches to compare with them, and the encoder of the probe."""

    patches: tuple[Path, ...]
    """folders with a folder or zip per class, or such zips"""
    out: Path
    """folder for the montage and the record"""
    classes: tuple[str, ...] = ("lung_aca", "lung_scc", "lung_n")
    """classes of real patches to use"""
    per_group: int = 4
    """patches per group, real or rendered"""
    sites: int = 3
    """sites of rendered patches"""
    patch_size: int = 224
    """side of a patch in pixels, real or rendered"""
    seed: int = 0
    """seed of rendering, of the choice of real patches, and of the folds"""
    encoder: str = "texture"
    """patch encoder"""

    def __post_init__(self) -> None:
        _at_least(1, "--per-group", self.per_group)
        _at_least(1, "--sites", self.sites)


def with_version(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a bank that states the version of its phantoms. Banks of real patches have none."""
    return record if "sources" in record else {"phantom_version": 1, **record}


def _at_least(least: int, option: str, value: int) -> None:
    if value < least:
        raise InputError(f"{option} must be at least {least}, got {value}")
