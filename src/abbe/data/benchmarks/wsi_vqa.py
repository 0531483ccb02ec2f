"""WSI-VQA: open and closed questions about cases, as one json list a split."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from abbe.data.benchmarks.questions import LETTERS, Question, QuestionFile
from abbe.data.textfiles import fields, read_list
from abbe.errors import TableError

_KEYS = ("Id", "Question", "Answer")


def read_wsi_vqa(path: str | Path) -> QuestionFile:
    """WSI-VQA: objects of Id (a case), Question, Answer (text) and, for closed questions, Choice (2 to 4 texts).

    A question's id is its place in the file, from 0. A closed question whose Answer is none of its choices cannot be
    scored: it is left out and named in `unusable`. Where the right choice is given twice, the first letter counts.
    Raises TableError naming file, place, key and value of anything else that is not so.
    """
    records, digest = read_list(path)
    questions, unusable = [], {}
    for place, record in enumerate(records):
        case, question, answer = fields(path, place, record, _KEYS, optional=("Choice",))
        options = tuple(_choices(path, place, record)) if "Choice" in record else ()
        if options and answer not in options:
            unusable[str(place)] = f"case {case!r}: Answer {answer!r} is none of the choices {list(options)}"
            continue
        said = LETTERS[options.index(answer)] if options else answer
        questions.append(Question(str(place), case, question, options, said))
    return QuestionFile(Path(path), "WSI-VQA", digest, tuple(questions), unusable=unusable)


def closed_unseen(test: QuestionFile, train: QuestionFile) -> QuestionFile:
    """WSI-VQA*: the closed questions of `test` about cases that `train` does not have."""
    seen = {question.slide for question in train.questions}
    kept = tuple(question for question in test.questions if question.closed and question.slide not in seen)
    return dataclasses.replace(test, kind="WSI-VQA*", questions=kept)


def _choices(path: str | Path, place: int, record: dict[str, Any]) -> list[str]:
    where = f"{path}, record {place}"
    choices = record["Choice"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise TableError(
            f"{where}: Choice is {choices!r}; expected a list of texts, or no key Choice for an open question"
        )
    if not 2 <= len(choices) <= len(LETTERS):
        raise TableError(f"{where}: Choice has {len(choices)} texts; expected 2 to {len(LETTERS)}")
    return [choice.strip() for choice in choices]
