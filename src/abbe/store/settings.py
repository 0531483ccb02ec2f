"""Settings of `abbe convert`. Imports nothing heavy, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from abbe.errors import ConfigError

Layout = Literal["auto", "clam", "gigapath", "histgen", "slidechat", "stamp", "tensors", "trident", "wsidata"]
Written = Literal["clam", "stamp", "tensors", "trident"]


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """The layout to write, and values that the files do not contain."""

    to: Written = "trident"
    """layout to write"""
    layout: Layout = "auto"
    """layout to read; auto detects it for each file"""
    patch_size_level0: float | None = None
    """side of a patch in level-0 pixels, for files that do not contain it"""
    override_mpp: float | None = None
    """microns per pixel at level 0, for files where it is missing or wrong"""
    level0_size: tuple[int, int] | None = None
    """width and height of the slide in level-0 pixels, for files that do not contain them"""
    stride_level0: float | None = None
    """step between patches in level-0 pixels, for files of overlapping patches that do not contain it"""
    encoder: str | None = None
    """required patch encoder; selects one if a file has several, and is recorded if a file names none"""
    trust_pickle: bool = False
    """read files that contain pickles, in a child process: this RUNS CODE from the file"""
    overwrite: bool = False
    """replace outputs made from another version of a file or with other options"""
    slide: tuple[Path, ...] = ()
    """slides, or folders of slides, to read mpp and slide size from if a feature file lacks them"""

    def __post_init__(self) -> None:
        for name, value, known in (("--to", self.to, get_args(Written)), ("--layout", self.layout, get_args(Layout))):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}; known: {', '.join(known)}")
        for name in ("patch_size_level0", "override_mpp", "stride_level0"):
            number = getattr(self, name)
            if number is not None and not 0 < number < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} is {number:g}; it must be a positive number")
