"""Splits into train, val and test; a patient is never in two of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from abbe.data import SPLITS
from abbe.data.textfiles import Csv, read_csv
from abbe.errors import TableError


def read_clam_splits(path: str | Path) -> dict[str, str]:
    """CLAM's splits_k.csv as {slide_id: split}. Columns may be of different lengths: empty places hold no slide.

    Raises TableError naming file and line of a slide in two columns or twice in one, and for the tables of other
    content that CLAM writes beside it (splits_k_bool.csv, splits_k_descriptor.csv).
    """
    return {slide: split for slide, split, _ in clam_entries(Path(path))[1]}


def clam_entries(path: Path) -> tuple[Csv, list[tuple[str, str, int]]]:
    """The file and its (slide, split, row), row by row."""
    table = read_csv(path)
    table.need(SPLITS)
    entries = list(_entries(table))
    if {slide for slide, _, _ in entries} <= {"True", "False"}:
        raise TableError(
            f"{path}: holds True and False, as splits_k_bool.csv does; give splits_k.csv, which has slides"
        )
    other = [column for column in table.columns if column not in SPLITS]
    if (
        other
        and all(slide.isdigit() for slide, _, _ in entries)
        and not all(row[other[0]].isdigit() for row in table.rows)
    ):
        raise TableError(f"{path}: holds counts, as splits_k_descriptor.csv does; give splits_k.csv, which has slides")
    before: dict[str, str] = {}
    for slide, split, index in entries:
        if slide in before:
            twice = "twice" if before[slide] == split else f"in {before[slide]!r} and"
            table.refuse(index, f"slide {slide!r} is {twice} in {split!r}; a slide belongs to one split")
        before[slide] = split
    return table, entries


def _entries(table: Csv) -> Iterable[tuple[str, str, int]]:
    for index, row in enumerate(table.rows):
        for split in SPLITS:
            if slide := row[split].strip():
                yield slide, split, index


def split_patients(
    table: pd.DataFrame, *, label: str = "label", fractions: Sequence[float] = (0.6, 0.15, 0.25), seed: int = 0
) -> pd.DataFrame:
    """The table with a column `split`, drawn by patient and stratified by the patient's first label.

    fractions: shares of patients for train, val and test; every split gets at least one patient of each label.
    Raises TableError where a label has fewer than three patients.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise TableError(f"fractions must be three positive shares that add up to 1, got {list(fractions)}")
    rng = np.random.default_rng(seed)
    patients = table.groupby("case_id", sort=True)[label].first()
    side: dict[str, str] = {}
    for value in sorted(patients.unique()):
        cases = rng.permutation(np.asarray(patients.index[patients == value], dtype=object))
        if len(cases) < 3:
            raise TableError(f"label {value!r} has {len(cases)} patients; three splits need at least three")
        n_val = max(1, round(fractions[1] * len(cases)))
        n_test = max(1, round(fractions[2] * len(cases)))
        n_train = max(1, len(cases) - n_val - n_test)
        names = ["train"] * n_train + ["val"] * n_val + ["test"] * n_test
        side |= dict(zip(cases, names, strict=False))
    return table.assign(split=table["case_id"].map(side))


def check_splits(table: Csv) -> None:
    """TableError for a value that is not one of SPLITS, or a patient in two of them."""
    cases: dict[str, str] = {}
    for index, row in enumerate(table.rows):
        row["split"] = row["split"].strip()
        if row["split"] not in SPLITS:
            table.refuse(index, f"split is {row['split']!r}; expected one of {', '.join(SPLITS)}")
        check_one_split(cases, row["case_id"], row["split"], f"{table.path}, line {table.lines[index]}")


def check_one_split(cases: dict[str, str], case: str, split: str, where: str) -> None:
    """Note the split of a patient in `cases`; TableError where it has another already."""
    before = cases.setdefault(case, split)
    if before != split:
        raise TableError(f"{where}: patient {case!r} is in {before!r} and in {split!r}; a patient belongs to one split")
