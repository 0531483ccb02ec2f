"""How slides are encoded: the settings of `abbe encode`, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from abbe.errors import ConfigError
from abbe.slides.slide import TIME_LIMIT
from abbe.slides.tiling import MPP_RANGE

Precision = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How slides are encoded."""

    encoder: str = "texture"
    """patch encoder"""
    mpp: float = 0.5
    """microns a pixel of the patches (0.5 is 20x)"""
    patch_size: int = 256
    """side of a patch in pixels at that mpp"""
    overlap: int = 0
    """pixels that neighbouring patches share"""
    override_mpp: float | None = None
    """microns a pixel at level 0, for slides that do not say it or say it wrongly"""
    device: str = "auto"
    """where the encoder computes: auto, cpu, cuda, cuda:1"""
    precision: Precision = "auto"
    """what the encoder computes in"""
    batch_size: int = 32
    """patches the encoder is given at a time"""
    workers: int | None = None
    """slides in flight (default: one a core this process may use, at most 8)"""
    time_limit: float = TIME_LIMIT
    """seconds a slide may take before it is stopped and counted as failed"""
    overwrite: bool = False
    """encode again what was made from another version of a slide, or with other settings"""

    def __post_init__(self) -> None:
        low, high = MPP_RANGE
        for option, value in (("--mpp", self.mpp), ("--override-mpp", self.override_mpp)):
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{option} is {value:g}; microns per pixel lie between {low:g} and {high:g}")
        if self.patch_size < 32:
            raise ConfigError(f"--patch-size is {self.patch_size}; a patch must have at least 32 pixels per side")
        if not 0 <= self.overlap < self.patch_size:
            raise ConfigError(
                f"--overlap is {self.overlap}; it must be at least 0 and below the patch size {self.patch_size}"
            )
        for option, count in (("--batch-size", self.batch_size), ("--workers", self.workers)):
            if count is not None and count < 1:
                raise ConfigError(f"{option} is {count}; it must be at least 1")
        if not self.time_limit > 0:
            raise ConfigError(f"--time-limit is {self.time_limit:g}; it must be above 0 seconds")
