"""Questions about slides, in the same form for every benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abbe.data.textfiles import Csv

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Question:
    """A question about one slide, or about one case if the benchmark identifies cases.

    options: texts of A, B, … in order, "" for an empty option before the last; () for an open question.
    answer: letter of a non-empty option, or the answer text of an open question.
    broad, narrow: categories of the benchmark, "" if it has none.  extra: other columns.
    """

    id: str
    slide: str
    question: str
    options: tuple[str, ...]
    answer: str
    broad: str = ""
    narrow: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Whether the question has options."""
        return bool(self.options)

    @property
    def answer_text(self) -> str:
        """Text of the correct option, or of the open answer."""
        return self.options[LETTERS.index(self.answer)] if self.closed else self.answer


@dataclass(frozen=True)
class QuestionFile:
    """Questions of one file. A benchmark may have several releases; N and the SHA-256 identify this one.

    unusable: skipped records as {index in the file: reason}.
    """

    path: Path
    kind: str
    sha256: str
    questions: tuple[Question, ...]
    release: str = ""
    unusable: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """One line to report with every result: kind, N, slides, number of unusable records, SHA-256."""
        left_out = f", {len(self.unusable)} unusable" if self.unusable else ""
        release = f" ({self.release})" if self.release else ""
        slides = len({question.slide for question in self.questions})
        return f"{self.kind}: N = {len(self.questions)}{release} about {slides} slides{left_out}, sha256 {self.sha256}"

    def describe(self) -> dict[str, Any]:
        """Counts as JSON values. `always` is the accuracy of always answering one letter, over closed questions."""
        closed = [question for question in self.questions if question.closed]
        letters = Counter(question.answer for question in closed)
        return {
            "kind": self.kind,
            "path": str(self.path),
            "sha256": self.sha256,
            "n": len(self.questions),
            "release": self.release,
            "slides": len({question.slide for question in self.questions}),
            "closed": len(closed),
            "open": len(self.questions) - len(closed),
            "options": dict(sorted(Counter(str(sum(map(bool, question.options))) for question in closed).items())),
            "repeated_options": sum(_has_duplicates(question.options) for question in closed),
            "always": {letter: letters[letter] / len(closed) for letter in LETTERS} if closed else {},
            "broad": dict(Counter(question.broad for question in self.questions if question.broad)),
            "narrow": dict(Counter(question.narrow for question in self.questions if question.narrow)),
            "unusable": self.unusable,
        }


def closed_question(
    table: Csv, row: int, *, id: str, broad: str = "", narrow: str = "", extra: Sequence[str] = ()
) -> Question:
    """Build a question from a csv row with columns Slide, Question, A to D, Answer; trailing empty options are dropped.

    Raises TableError with file and line if fewer than two options are filled, or Answer is not the letter of one.
    """
    values = table.rows[row]
    options = [values[letter].strip() for letter in LETTERS]
    while options and not options[-1]:
        options.pop()
    filled = [letter for letter, option in zip(LETTERS, options, strict=False) if option]
    if len(filled) < 2:
        table.refuse(row, f"question {id!r} has {len(filled)} options; at least two of A, B, C and D must be filled")
    if values["Answer"] not in filled:
        table.refuse(
            row, f"Answer is {values['Answer']!r}; expected the letter of a filled option: {', '.join(filled)}"
        )
    other = {name: values[name] for name in extra}
    return Question(id, values["Slide"], values["Question"], tuple(options), values["Answer"], broad, narrow, other)


def _has_duplicates(options: tuple[str, ...]) -> bool:
    filled = [option for option in options if option]
    return len(set(filled)) < len(filled)
