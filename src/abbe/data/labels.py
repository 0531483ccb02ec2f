"""Read tables of slides, patients and labels: CLAM, STAMP, and one table per split."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from abbe.data import SPLITS
from abbe.data.splits import check_one_split, check_splits, clam_entries
from abbe.data.textfiles import Csv, read_csv
from abbe.errors import TableError


def read_labels(
    path: str | Path, *, label: str = "label", require_split: bool = False, splits: str | Path | None = None
) -> pd.DataFrame:
    """Read a labels table (CLAM's case_id, slide_id, label; other columns are kept). All values are strings.

    label: name of the label column.   require_split: require a column `split` with values train | val | test.
    splits: CLAM's splits_k.csv (slides in columns train, val, test), from which the column `split` is made. Slides in
    none of its columns are dropped and listed in the result's `attrs["outside_splits"]`.

    Raises TableError with file, line and value for an unreadable table (see read_csv), a missing column or value, a
    duplicate slide, an unknown split, a patient in two splits, or a slide of `splits` that is not in the table.
    """
    table = read_csv(path)
    own_split = "split" in table.columns
    if splits is not None and own_split:
        raise TableError(f"{path}: already has a column 'split'; remove it, or do not pass the splits file {splits}")
    table.filled(["slide_id", "case_id", label, *(["split"] if require_split and splits is None else [])])
    table.unique("slide_id", "slide")
    if splits is not None:
        return _with_splits(table, Path(splits))
    if own_split:
        check_splits(table)
    return _frame(table)


def read_split_tables(train: str | Path, val: str | Path, test: str | Path, *, label: str = "label") -> pd.DataFrame:
    """Combine three labels tables, one per split (TCGA-OT, EBRAINS), into one with the column `split`.

    Raises TableError as read_labels does, and if two files share a slide or patient or have different columns.
    """
    tables = {split: read_csv(path) for split, path in zip(SPLITS, (train, val, test), strict=True)}
    slides: dict[str, str] = {}
    cases: dict[str, str] = {}
    first = tables["train"]
    for split, table in tables.items():
        if set(table.columns) != set(first.columns):
            unshared = sorted(set(table.columns) ^ set(first.columns))
            raise TableError(
                f"{table.path}: columns differ from those of {first.path}: {unshared} are in only one of them"
            )
        if "split" in table.columns:
            raise TableError(f"{table.path}: already has a column 'split'; use read_labels with a single table instead")
        table.filled(["slide_id", "case_id", label])
        table.unique("slide_id", "slide")
        for index, row in enumerate(table.rows):
            if row["slide_id"] in slides:
                table.refuse(index, f"slide {row['slide_id']!r} is also in split {slides[row['slide_id']]!r}")
            slides[row["slide_id"]] = split
            check_one_split(cases, row["case_id"], split, f"{table.path}, line {table.lines[index]}")
    return pd.concat([_frame(table).assign(split=split) for split, table in tables.items()], ignore_index=True)


def read_stamp_tables(clini: str | Path, slides: str | Path, *, label: str) -> pd.DataFrame:
    """Join STAMP's clini_table (PATIENT, label) and slide_table (PATIENT, FILENAME) into slide_id, case_id and label.

    The slide_id is FILENAME without folders and the suffix .h5. Other columns of the clini table are kept. Patients
    without a slide are dropped and listed in the result's `attrs["without_slides"]`.

    Raises TableError with file and line for a duplicate patient or file, an empty value, or a slide whose patient is
    not in the clini table.
    """
    patients, files = read_csv(clini), read_csv(slides)
    patients.filled(["PATIENT", label])
    files.filled(["PATIENT", "FILENAME"])
    patients.unique("PATIENT", "patient")
    by_patient = {row["PATIENT"]: row for row in patients.rows}
    for row in files.rows:
        row["slide_id"] = PurePosixPath(row["FILENAME"].replace("\\", "/")).name.removesuffix(".h5")
    files.unique("slide_id", "slide")
    joined = []
    for index, row in enumerate(files.rows):
        if row["PATIENT"] not in by_patient:
            files.refuse(index, f"patient {row['PATIENT']!r} is not in {clini}; add the patient or remove the slide")
        clinical = {key: value for key, value in by_patient[row["PATIENT"]].items() if key != "PATIENT"}
        joined.append({"slide_id": row["slide_id"], "case_id": row["PATIENT"], **clinical})
    table = pd.DataFrame(joined)
    seen = {row["PATIENT"] for row in files.rows}
    table.attrs["without_slides"] = [patient for patient in by_patient if patient not in seen]
    return table


def _frame(table: Csv) -> pd.DataFrame:
    return pd.DataFrame(table.rows, columns=list(table.columns), dtype=str)


def _with_splits(table: Csv, path: Path) -> pd.DataFrame:
    by_slide = {row["slide_id"]: row for row in table.rows}
    cases: dict[str, str] = {}
    file, entries = clam_entries(path)
    for slide, split, index in entries:
        if slide not in by_slide:
            file.refuse(index, f"slide {slide!r} of column {split!r} is not in {table.path}")
        where = f"{path}, line {file.lines[index]} (slide {slide!r})"
        check_one_split(cases, by_slide[slide]["case_id"], split, where)
    sides = {slide: split for slide, split, _ in entries}
    frame = _frame(table)
    frame["split"] = frame["slide_id"].map(sides)
    inside = frame["split"].notna()
    result = frame[inside].reset_index(drop=True)
    result.attrs["outside_splits"] = frame.loc[~inside, "slide_id"].tolist()
    return result
