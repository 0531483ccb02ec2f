"""Read WSI-VQA: open and closed questions about cases, as one json list per split."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from abbe.data.benchmarks.questions import LETTERS, Question, QuestionFile
from abbe.data.textfiles import fields, read_list
from abbe.errors import TableError

_KEYS = ("Id", "Question", "Answer")


def read_wsi_vqa(path: str | Path) -> QuestionFile:
    """Read a list of objects with Id (a case), Question, Answer and, for closed questions, Choice (2 to 4 strings).

    The id of a question is its index in the file, from 0. A closed question whose Answer is not one of its choices
    cannot be scored: it is skipped and listed in `unusable`. If the correct choice is duplicated, its first letter is
    the answer. Raises TableError with file, record, key and value for any other violation.
    """
    records, digest = read_list(path)
    questions, unusable = [], {}
    for place, record in enumerate(records):
        case, question, answer = fields(path, place, record, _KEYS, optional=("Choice",))
        options = tuple(_choices(path, place, record)) if "Choice" in record else ()
        if options and answer not in options:
            unusable[str(place)] = f"case {case!r}: Answer {answer!r} is not one of the choices {list(options)}"
            continue
        letter_or_text = LETTERS[options.index(answer)] if options else answer
        questions.append(Question(str(place), case, question, options, letter_or_text))
    return QuestionFile(Path(path), "WSI-VQA", digest, tuple(questions), unusable=unusable)


def closed_unseen(test: QuestionFile, train: QuestionFile) -> QuestionFile:
    """WSI-VQA*: the closed questions of `test` about cases that are not in `train`."""
    seen = {question.slide for question in train.questions}
    kept = tuple(question for question in test.questions if question.closed and question.slide not in seen)
    return dataclasses.replace(test, kind="WSI-VQA*", questions=kept)


def _choices(path: str | Path, place: int, record: dict[str, Any]) -> list[str]:
    where = f"{path}, record {place}"
    choices = record["Choice"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise TableError(
            f"{where}: Choice is {choices!r}; expected a list of strings, or no key Choice for an open question"
        )
    if not 2 <= len(choices) <= len(LETTERS):
        raise TableError(f"{where}: Choice has {len(choices)} options; expected 2 to {len(LETTERS)}")
    return [choice.strip() for choice in choices]
