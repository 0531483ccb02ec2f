"""Read SlideBench-VQA (TCGA and BCNB): closed questions about whole slides, as csv files."""

from __future__ import annotations

from pathlib import Path

from abbe.data.benchmarks.questions import LETTERS, QuestionFile, closed_question
from abbe.data.textfiles import Csv, read_csv

_TCGA = ("ID", "Slide", "Tumor", "Broad Category", "Narrow Category", "Question", *LETTERS, "Answer")
_BCNB = ("ID", "Slide", "Task", "Question", *LETTERS, "Answer")
_RELEASES = {
    7827: "the size in the paper",
    1494: "the size of the first public file",
    3176: "the size of the second public file",
}


def read_slidebench(path: str | Path) -> QuestionFile:
    """Read SlideBench-VQA (TCGA) or questions.csv of a phantom cohort, which has the same columns.

    Options and Tumor may be empty; Tumor and other columns are kept in `extra`.
    Raises TableError with file, line and value for a missing column, an empty value, a duplicate ID, fewer than two
    options, or an Answer that is not the letter of a filled option.
    """
    table = _table(path, _TCGA, ("ID", "Slide", "Broad Category", "Narrow Category", "Question", "Answer"))
    extra = ["Tumor", *(column for column in table.columns if column not in _TCGA)]
    questions = tuple(
        closed_question(
            table, row, id=values["ID"], broad=values["Broad Category"], narrow=values["Narrow Category"], extra=extra
        )
        for row, values in enumerate(table.rows)
    )
    release = _RELEASES.get(len(questions), "not the size of a known release")
    return QuestionFile(table.path, "SlideBench-VQA", table.sha256, questions, release)


def read_bcnb(path: str | Path) -> QuestionFile:
    """Read SlideBench-VQA (BCNB). Slide is a patient number; Task becomes `broad`.

    Raises TableError as read_slidebench does.
    """
    table = _table(path, _BCNB, ("ID", "Slide", "Task", "Question", "Answer"))
    extra = [column for column in table.columns if column not in _BCNB]
    questions = tuple(
        closed_question(table, row, id=values["ID"], broad=values["Task"], extra=extra)
        for row, values in enumerate(table.rows)
    )
    return QuestionFile(table.path, "SlideBench-VQA (BCNB)", table.sha256, questions)


def _table(path: str | Path, columns: tuple[str, ...], filled: tuple[str, ...]) -> Csv:
    table = read_csv(path)
    table.need(columns)
    table.filled(filled)
    table.unique("ID", "ID")
    return table
