"""What cohorts and banks are made of. Imports nothing heavy, so that `--help` costs little."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from abbe.data import SPLITS
from abbe.errors import InputError

SPLITS_OF_GROUPS = 5
"""ways to split the groups of a mosaic's patches"""
LABELS = {"needle": ("a", "b"), "mixture": ("low", "high"), "spatial": ("margin", "inside")}
"""both labels of each task; scores rise towards the second"""
INSIDE = 60  # patches of a spatial deposit, on average


@dataclass(frozen=True)
class CohortPlan:
    """A cohort. Patients have one or two slides; a patient has one site, one stain setting, at most one tumour."""

    fraction: float = 0.01
    """evidence of the needle task: share of a slide's patches that are tumour (at least one patch)"""
    slides: tuple[int, int, int] = (300, 100, 200)
    """slides for train, val and test"""
    patches: int = 2000
    """patches a slide, on average; each slide has this ± 25 %"""
    seed: int = 0
    """of patients, layouts and draws from the bank"""
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
        if self.task == "spatial" and self.deposit * self.patches < INSIDE:
            raise InputError(
                f"--plan.deposit {self.deposit:g} of --plan.patches {self.patches} has no inside; "
                f"the spatial task needs deposit x patches of at least {INSIDE}"
            )
        if len(self.slides) != len(SPLITS) or min(self.slides) < 2:
            raise InputError(f"--plan.slides needs at least two for each of {', '.join(SPLITS)}, got {self.slides}")
        if self.patches < 16:
            raise InputError(f"--plan.patches must be at least 16, got {self.patches}")
        if self.seed < 0:
            raise InputError(f"--plan.seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class BankPlan:
    """What a bank holds. A cell is one class of one site in one of its three stain settings."""

    sites: int = 3
    """sites, each with its own stain and texture"""
    normal: tuple[int, int, int] = (12, 4, 8)
    """patches a cell for train, val and test, of each class without tumour"""
    tumour: tuple[int, int, int] = (20, 6, 14)
    """the same for each tumour class: what a task turns on must be seen in many instances"""
    seed: int = 0
    """of the rendered world: sites, stains, textures"""
    split: int = 0
    """which bank of that world: banks of different split share no patch, in any of train, val and test"""
    encoder: str = "texture"
    """patch encoder"""

    def __post_init__(self) -> None:
        for name in ("normal", "tumour"):
            sizes = getattr(self, name)
            if len(sizes) != len(SPLITS) or min(sizes) < 1:
                raise InputError(f"--bank.{name} needs at least one patch for each of {', '.join(SPLITS)}, got {sizes}")
        if self.sites < 1:
            raise InputError(f"--bank.sites must be at least 1, got {self.sites}")
        for name in ("seed", "split"):
            if getattr(self, name) < 0:
                raise InputError(f"--bank.{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class MosaicBankPlan:
    """What a bank of real patches is made of. Classes are folders or zips of the patches."""

    patches: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """folders and zips of labelled patches"""
    a: str = "lung_aca"
    """class that is the tumour of subtype a"""
    b: str = "lung_scc"
    """class that is the tumour of subtype b"""
    rest: tuple[str, ...] = ("lung_n",)
    """classes without tumour; those named necrosis and lymphocytes make the mixture and the spatial task possible"""
    index: str | None = None
    """csv with class, file, group (default: index.csv in a folder of patches; without any, each patch is a group)"""
    split: int = 0
    """which of five ways to split the groups: a fifth each is for val and test; no group is test in two of them"""
    patch_size: int = 224
    """side of a patch in pixels; images of another size are refused"""
    resize: bool = False
    """resample square images of another size instead"""
    mpp: float | None = None
    """microns a pixel, where it is known"""
    seed: int = 0
    """of the order in which groups are split"""
    encoder: str = "texture"
    """patch encoder"""

    def __post_init__(self) -> None:
        names = (self.a, self.b, *self.rest)
        if not self.rest or len(set(names)) < len(names):
            raise InputError(
                f"--bank.a, --bank.b and --bank.rest must name different classes, at least one of each; got {names}"
            )
        if not 0 <= self.split < SPLITS_OF_GROUPS:
            raise InputError(f"--bank.split must be 0 to {SPLITS_OF_GROUPS - 1}, got {self.split}")
        if self.patch_size < 16:
            raise InputError(f"--bank.patch-size must be at least 16, got {self.patch_size}")
        if self.mpp is not None and self.mpp <= 0:
            raise InputError(f"--bank.mpp must be positive, got {self.mpp}")
        if self.seed < 0:
            raise InputError(f"--bank.seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class RealismSettings:
    """What is rendered, what is chosen of the real patches, and what the probe reads."""

    patches: tuple[Path, ...]
    """folders with a folder or zip per class, or such zips"""
    out: Path
    """folder for the montage and the record"""
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
