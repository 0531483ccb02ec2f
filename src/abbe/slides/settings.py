"""How slides are encoded: the settings of `abbe encode`, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from abbe.errors import ConfigError
from abbe.slides.slide import TIME_LIMIT
from abbe.slides.tiling import MPP_RANGE

Precision = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelPatches:
    """How a slide is encoded for a model: as its training slides were. Options are for models that do not say."""

    mpp: float | None = None
    """for a slide: microns per pixel of its patches (default: the model's)"""
    patch_size: int | None = None
    """for a slide: side of a patch in pixels at that mpp (default: the model's)"""
    overlap: int | None = None
    """for a slide: pixels shared by neighbouring patches (default: the model's)"""
    override_mpp: float | None = None
    """for a slide that does not state it: microns per pixel at level 0"""


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How slides are encoded."""

    encoder: str = "texture"
    """patch encoder"""
    mpp: float = 0.5
    """microns per pixel of the patches (0.5 is 20x)"""
    patch_size: int = 256
    """side of a patch in pixels at that mpp"""
    overlap: int = 0
    """pixels shared by neighbouring patches"""
    override_mpp: float | None = None
    """microns per pixel at level 0, for slides that do not state it or state it wrongly"""
    device: str = "auto"
    """device of the encoder: auto, cpu, cuda, cuda:1"""
    precision: Precision = "auto"
    """number format of the encoder"""
    batch_size: int = 32
    """patches per batch of the encoder"""
    workers: int | None = None
    """slides encoded at the same time (default: one per core this process may use, at most 8)"""
    time_limit: float = TIME_LIMIT
    """seconds after which a slide is stopped and counted as failed"""
    overwrite: bool = False
    """replace outputs made from another version of a slide or with other settings"""

    def __post_init__(self) -> None:
        low, high = MPP_RANGE
        for option, value in (("--mpp", self.mpp), ("--override-mpp", self.override_mpp)):
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{option} is {value:g}; it must be between {low:g} and {high:g} microns per pixel")
        for option, count, least in (
            ("--patch-size", self.patch_size, 32),
            ("--batch-size", self.batch_size, 1),
            ("--workers", self.workers, 1),
        ):
            if count is not None and count < least:
                raise ConfigError(f"{option} is {count}; it must be at least {least}")
        if not 0 <= self.overlap < self.patch_size:
            raise ConfigError(
                f"--overlap is {self.overlap}; it must be at least 0 and below the patch size {self.patch_size}"
            )
        if not self.time_limit > 0:
            raise ConfigError(f"--time-limit is {self.time_limit:g}; it must be above 0 seconds")
