"""All errors that Abbe raises on purpose.

    AbbeError
    ├── InputError                 invalid input; also a ValueError
    │   ├── ConfigError            an option, a key or a name; suggests the nearest one
    │   ├── BagError               features or coordinates
    │   │   └── MissingCoordinates a step needs coordinates and the bag has none
    │   ├── TableError             a labels, splits or predictions table
    │   └── CheckpointError        a model folder or a training checkpoint
    ├── SlideError                 one slide failed; a batch records it and continues
    └── StoreError                 an output on disk is missing, cut short, altered or foreign

A message names the file or object, the key, the value found, and what was expected.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class AbbeError(Exception):
    """Base class of all errors that Abbe raises on purpose."""


class InputError(AbbeError, ValueError):
    """Invalid input from the user."""


class ConfigError(InputError):
    """An option, a configuration key or a registered name that is unknown or has an invalid value."""


class BagError(InputError):
    """A bag with invalid or inconsistent features, coordinates or geometry."""


class MissingCoordinates(BagError):
    """Coordinates are needed but the bag has none."""


class TableError(InputError):
    """An invalid table (labels, splits, predictions)."""


class CheckpointError(InputError):
    """A model folder or checkpoint that is incomplete, altered or of the wrong kind."""


class SlideError(AbbeError):
    """One slide failed. `stage` is one of open, geometry, tissue, read, encode, write, time limit."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason


class StoreError(AbbeError):
    """A file in an output folder that is missing, cut short, altered or not written by Abbe."""


def check_range(owner: str, least: float, below: float = math.inf, **options: float) -> None:
    """Raise ConfigError for an option outside [least, below), or NaN."""
    for option, value in options.items():
        if not least <= value < below:  # NaN fails too
            expected = f"at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
            raise ConfigError(f"{owner}: {option} must be {expected}, got {value!r}")


def nearest(name: object, choices: Iterable[str]) -> str:
    """Last sentence of an error about an unknown `name`: the nearest choice, or all choices."""
    known = sorted(choices)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(known) or 'none'}."
