"""Every error Abbe raises on purpose.

    AbbeError
    ├── InputError                 something given is wrong; also a ValueError
    │   ├── ConfigError            an option, a key or a name: nearest one suggested
    │   ├── BagError               features, coordinates or their lengths
    │   │   └── MissingCoordinates a step needs positions that the bag does not have
    │   ├── TableError             a labels, splits or predictions table
    │   └── CheckpointError        a model folder or a training checkpoint
    ├── SlideError                 one slide could not be used; a batch records it and goes on
    └── StoreError                 an output on disk is missing, torn, altered or foreign

A message names the file or object, the key, the value found, and what would be right.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class AbbeError(Exception):
    """Root of the tree: catch this to catch everything Abbe refuses on purpose."""


class InputError(AbbeError, ValueError):
    """Something the user gave is wrong; nothing was computed from it."""


class ConfigError(InputError):
    """An option, a configuration key or a registered name that does not exist or does not fit."""


class BagError(InputError):
    """A bag whose features, coordinates or geometry contradict each other."""


class MissingCoordinates(BagError):
    """Positions were asked of a bag that has none."""


class TableError(InputError):
    """A table (labels, splits, predictions) that cannot be used as it stands."""


class CheckpointError(InputError):
    """A model folder or checkpoint that is incomplete, altered or of another kind."""


class SlideError(AbbeError):
    """One slide could not be used. `stage` says where: open, geometry, tissue, read, encode, write, time limit."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason


class StoreError(AbbeError):
    """A file in an output folder that is missing, torn, altered or not ours."""


def check_range(owner: str, least: float, below: float = math.inf, **options: float) -> None:
    """Raise ConfigError for an option that is not a number in [least, below)."""
    for option, value in options.items():
        if not least <= value < below:  # NaN fails too
            right = f"at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
            raise ConfigError(f"{owner}: {option} must be {right}, got {value!r}")


def nearest(name: object, choices: Iterable[str]) -> str:
    """A closing sentence for an error about an unknown `name`: the nearest choice, or all of them."""
    known = sorted(choices)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(known) or 'none'}."
