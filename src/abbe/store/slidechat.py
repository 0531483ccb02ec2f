"""SlideChat's layout: one csv a slide with a header row; columns 0–511 are CONCH features, then location and file name.

The locations are not level-0 pixels of anything that is stored, so the bag is a bare one.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from abbe.errors import BagError
from abbe.store.parts import Overrides, Peek, assemble
from abbe.types import Bag

NAME = "slidechat"
WIDTH = 512
ENCODER = "conch_v1"


def read(path: Path, given: Overrides) -> Bag:
    """A bare bag of [N, 512]. BagError for too few columns, or the row and column of what is no number."""
    _header(path)
    try:
        table = pd.read_csv(path, usecols=range(WIDTH), dtype=np.float32)
    except (ValueError, OSError) as error:
        raise BagError(f"{path}: {_first_bad(path) or error}") from error
    return assemble(path, table.to_numpy(), None, None, given, name="columns 0–511", encoder=ENCODER)


def peek(path: Path) -> Peek:
    """(N, 512, "conch_v1"); rows are counted, not parsed."""
    _header(path)
    with open(path, "rb") as file:
        lines = sum(1 for line in file if line.strip())
    return lines - 1, WIDTH, ENCODER


def is_one(path: Path) -> bool:
    """Whether a csv has enough columns to be a slide's features and not a table of labels."""
    return len(_columns(path)) >= WIDTH


def _header(path: Path) -> None:
    columns = _columns(path)
    if len(columns) < WIDTH:
        raise BagError(
            f"{path}: {len(columns)} columns; SlideChat's features are the first {WIDTH}, and a header row stands above"
        )
    try:
        numbers = [float(column) for column in columns[:WIDTH]]
    except ValueError:
        return
    if numbers != list(range(WIDTH)):
        raise BagError(f"{path}: no header row: the first line is numbers, and would be lost; put a header above it")


def _columns(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BagError(f"{path}: cannot be read as csv ({error})") from error


def _first_bad(path: Path) -> str:
    """Where the first value stands that is no number; "" where all are."""
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file)):
            for column, value in enumerate(row[:WIDTH] if number else []):
                try:
                    float(value or "nan")
                except ValueError:
                    return f"row {number - 1}, column {column} is {value!r}; expected a number"
    return ""
