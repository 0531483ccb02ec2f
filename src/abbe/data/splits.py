"""Patient-level train, val and test splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from abbe.data import SPLITS
from abbe.data.textfiles import Csv, read_csv
from abbe.errors import TableError


def read_clam_splits(path: str | Path) -> dict[str, str]:
    """Read CLAM's splits_k.csv as {slide_id: split}. Columns may differ in length; empty cells are skipped.

    Raises TableError with file and line for a duplicate slide, and for the other tables that CLAM writes in the same
    folder (splits_k_bool.csv, splits_k_descriptor.csv).
    """
    return {slide: split for slide, split, _ in clam_entries(Path(path))[1]}


def clam_entries(path: Path) -> tuple[Csv, list[tuple[str, str, int]]]:
    """The table and a list of (slide, split, row index)."""
    table = read_csv(path)
    table.need(SPLITS)
    entries = list(_entries(table))
    if {slide for slide, _, _ in entries} <= {"True", "False"}:
        raise TableError(
            f"{path}: contains True and False, like splits_k_bool.csv; use splits_k.csv, which lists slides"
        )
    other = [column for column in table.columns if column not in SPLITS]
    if (
        other
        and all(slide.isdigit() for slide, _, _ in entries)
        and not all(row[other[0]].isdigit() for row in table.rows)
    ):
        raise TableError(f"{path}: contains counts, like splits_k_descriptor.csv; use splits_k.csv, which lists slides")
    before: dict[str, str] = {}
    for slide, split, index in entries:
        if slide in before:
            places = "duplicated" if before[slide] == split else f"in {before[slide]!r} and"
            table.refuse(index, f"slide {slide!r} is {places} in {split!r}; a slide must be in one split")
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
    """Add a column `split` by a random split of patients, stratified by each patient's first label.

    fractions: fractions of patients for train, val and test; every split gets at least one patient per label.
    Raises TableError if a label has fewer than three patients.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise TableError(f"fractions must be three positive numbers that sum to 1, got {list(fractions)}")
    rng = np.random.default_rng(seed)
    patients = table.groupby("case_id", sort=True)[label].first()
    split_of: dict[str, str] = {}
    for value in sorted(patients.unique()):
        cases = rng.permutation(np.asarray(patients.index[patients == value], dtype=object))
        if len(cases) < 3:
            raise TableError(f"label {value!r} has {len(cases)} patients; three splits need at least three")
        n_val = max(1, round(fractions[1] * len(cases)))
        n_test = max(1, round(fractions[2] * len(cases)))
        n_train = max(1, len(cases) - n_val - n_test)
        names = ["train"] * n_train + ["val"] * n_val + ["test"] * n_test
        split_of |= dict(zip(cases, names, strict=False))
    return table.assign(split=table["case_id"].map(split_of))


def check_splits(table: Csv) -> None:
    """Raise TableError for an unknown split or a patient in two splits."""
    cases: dict[str, str] = {}
    for index, row in enumerate(table.rows):
        row["split"] = row["split"].strip()
        if row["split"] not in SPLITS:
            table.refuse(index, f"split is {row['split']!r}; expected one of {', '.join(SPLITS)}")
        check_one_split(cases, row["case_id"], row["split"], f"{table.path}, line {table.lines[index]}")


def check_one_split(cases: dict[str, str], case: str, split: str, where: str) -> None:
    """Record the patient's split in `cases`; raise TableError if it already has another."""
    before = cases.setdefault(case, split)
    if before != split:
        raise TableError(f"{where}: patient {case!r} is in {before!r} and in {split!r}; a patient must be in one split")
