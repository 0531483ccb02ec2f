"""SlideChat's layout: one csv per slide with a header row, 512 columns of CONCH features, location and file name.

The locations are not in level-0 pixels, so the bag has no coordinates.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from abbe.errors import BagError
from abbe.store.parts import Overrides, Peek, assemble
from abbe.types import Bag

NAME = "slidechat"
WIDTH = 512
ENCODER = "conch_v1"


def read(path: Path, overrides: Overrides) -> Bag:
    """A bare bag of [N, 512]. Raises BagError for too few columns or a value that is not a number."""
    _check_header(path)
    try:
        table = pd.read_csv(path, usecols=range(WIDTH), dtype=np.float32)
    except (ValueError, OSError) as error:
        raise BagError(f"{path}: {_first_bad_value(path) or error}") from error
    return assemble(path, table.to_numpy(), None, None, overrides, name="columns 0–511", encoder=ENCODER)


def peek(path: Path) -> Peek:
    """(N, 512, "conch_v1"); rows are counted, not parsed."""
    _check_header(path)
    try:
        with open(path, "rb") as file:
            lines = sum(1 for line in file if line.strip())
    except OSError as error:
        raise BagError(f"{path}: cannot be read as csv ({error})") from error
    return lines - 1, WIDTH, ENCODER


def is_slidechat(path: Path) -> bool:
    """Whether a csv has enough columns to be a slide's features and not a table of labels."""
    return len(_columns(path)) >= WIDTH


def _check_header(path: Path) -> None:
    columns = _columns(path)
    if len(columns) < WIDTH:
        raise BagError(f"{path}: {len(columns)} columns; expected a header row and SlideChat's {WIDTH} features first")
    if all(map(_is_number, columns[:WIDTH])) and list(map(float, columns[:WIDTH])) != list(range(WIDTH)):
        raise BagError(f"{path}: no header row: the first line contains numbers and would be lost; add a header")


def _columns(path: Path) -> list[str]:
    return next(_lines(path), [])


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            yield from csv.reader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BagError(f"{path}: cannot be read as csv ({error})") from error


def _first_bad_value(path: Path) -> str:
    """Row, column and value of the first value that is not a number; "" if there is none."""
    for number, row in enumerate(_lines(path)):
        for column, value in enumerate(row[:WIDTH] if number else []):
            if not _is_number(value or "nan"):
                return f"row {number - 1}, column {column} is {value!r}; expected a number"
    return ""


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
