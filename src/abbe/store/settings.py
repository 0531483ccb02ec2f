"""How feature files are converted. Imports nothing heavy, so that `--help` costs little."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from abbe.errors import ConfigError

Layout = Literal["auto", "clam", "gigapath", "histgen", "slidechat", "stamp", "tensors", "trident", "wsidata"]
Written = Literal["clam", "stamp", "tensors", "trident"]


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """What to write, and what the files do not say."""

    to: Written = "trident"
    """layout to write"""
    layout: Layout = "auto"
    """layout to read; auto tells it from each file"""
    patch_size_level0: float | None = None
    """side of a patch in level-0 pixels, for files that do not say it"""
    override_mpp: float | None = None
    """microns a pixel at level 0, for files that do not say it or say it wrongly"""
    level0_size: tuple[int, int] | None = None
    """width and height of the slide in level-0 pixels, for files that do not say them"""
    stride_level0: float | None = None
    """step between patches in level-0 pixels, for files of overlapping patches that do not say it"""
    encoder: str | None = None
    """patch encoder the features must be of; says which where a file holds several, is recorded where it names none"""
    trust_pickle: bool = False
    """unpickle files that are pickles inside, in a child process: this RUNS CODE that is in the file"""
    overwrite: bool = False
    """convert again what was made from another version of a file, or with other options"""
    slide: tuple[Path, ...] = ()
    """slides, or folders of them, that say the mpp and the size of a slide where its feature file does not"""

    def __post_init__(self) -> None:
        for name, value, known in (("--to", self.to, get_args(Written)), ("--layout", self.layout, get_args(Layout))):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}; known: {', '.join(known)}")
        for name in ("patch_size_level0", "override_mpp", "stride_level0"):
            number = getattr(self, name)
            if number is not None and not 0 < number < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} is {number:g}; it must be a positive number")
