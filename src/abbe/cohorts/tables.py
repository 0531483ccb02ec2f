"""Tables of slides, patients and labels; splits that never put one patient on two sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from abbe.errors import TableError, nearest

SPLITS = ("train", "val", "test")


def read_labels(path: str | Path, *, label: str = "label", require_split: bool = False) -> pd.DataFrame:
    """A labels table (CLAM's case_id, slide_id, label; further columns kept) with every value a string.

    label: the column that holds the label.   require_split: a column `split` of train | val | test must be there.

    Raises TableError naming file, line and value: a missing column or value, a slide listed twice, a split that is not
    one of SPLITS, a patient in two splits.
    """
    path = Path(path)
    try:
        # Strings throughout, so that "001" stays "001"; utf-8-sig, because spreadsheets write a byte-order mark.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read as a csv table ({error})") from error
    table.columns = [str(column).strip() for column in table.columns]
    needed = ["slide_id", "case_id", label] + (["split"] if require_split else [])
    for column in needed:
        if column not in table:
            raise TableError(f"{path}: no column {column!r}. {nearest(column, map(str, table.columns))}")
        table[column] = table[column].str.strip()
        empty = table.index[table[column] == ""]
        if len(empty):
            raise TableError(f"{path}, line {_line(empty[0])}: column {column!r} is empty")
    twice = table.index[table["slide_id"].duplicated()]
    if len(twice):
        raise TableError(
            f"{path}, line {_line(twice[0])}: slide {table['slide_id'][twice[0]]!r} is listed a second time"
        )
    if "split" in table:
        _check_splits(path, table)
    return table


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


def _check_splits(path: Path, table: pd.DataFrame) -> None:
    table["split"] = table["split"].str.strip()
    wrong = table.index[~table["split"].isin(SPLITS)]
    if len(wrong):
        value = table["split"][wrong[0]]
        raise TableError(f"{path}, line {_line(wrong[0])}: split is {value!r}; expected one of {', '.join(SPLITS)}")
    first = table.groupby("case_id")["split"].transform("first")
    torn = table.index[table["split"] != first]
    if len(torn):
        row = torn[0]
        raise TableError(
            f"{path}, line {_line(row)}: patient {table['case_id'][row]!r} is in {first[row]!r} and in "
            f"{table['split'][row]!r}; a patient belongs to one split"
        )


def _line(row: int) -> int:
    return int(row) + 2  # the header is line 1
