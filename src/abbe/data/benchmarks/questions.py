"""One question about a slide, and a file of them, whatever the benchmark they come from."""

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
    """A question about one slide (or one case, where a benchmark names cases).

    options: texts of A, B, … in this order; "" where an option in between is empty; () for an open question.
    answer: the letter of a non-empty option, or the text of an open question's answer.
    broad, narrow: the benchmark's own categories, "" where it has none.  extra: its further columns.
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
        """True where there are options to choose from."""
        return bool(self.options)

    @property
    def answer_text(self) -> str:
        """The right option in words, or the open answer."""
        return self.options[LETTERS.index(self.answer)] if self.closed else self.answer


@dataclass(frozen=True)
class QuestionFile:
    """Questions of one file. Files of one name circulate in several releases: N and hash say which one this is.

    unusable: what was left out, as {place in the file: reason}.
    """

    path: Path
    kind: str
    sha256: str
    questions: tuple[Question, ...]
    release: str = ""
    unusable: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """What is to be printed beside every figure: kind, N, slides, what was left out, hash."""
        left_out = f", {len(self.unusable)} unusable" if self.unusable else ""
        release = f" ({self.release})" if self.release else ""
        slides = len({question.slide for question in self.questions})
        return f"{self.kind}: N = {len(self.questions)}{release} about {slides} slides{left_out}, sha256 {self.sha256}"

    def describe(self) -> dict[str, Any]:
        """Counts as plain JSON. `always` is the accuracy of naming one letter every time, over closed questions."""
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
            "repeated_options": sum(_repeats(question.options) for question in closed),
            "always": {letter: letters[letter] / len(closed) for letter in LETTERS} if closed else {},
            "broad": dict(Counter(question.broad for question in self.questions if question.broad)),
            "narrow": dict(Counter(question.narrow for question in self.questions if question.narrow)),
            "unusable": self.unusable,
        }


def closed_question(
    table: Csv, row: int, *, id: str, broad: str = "", narrow: str = "", extra: Sequence[str] = ()
) -> Question:
    """The question of a csv row with columns Slide, Question, A to D, Answer; trailing empty options are dropped.

    Raises TableError naming file and line where Answer is not the letter of a non-empty option, or fewer than two
    options are given.
    """
    values = table.rows[row]
    options = [values[letter].strip() for letter in LETTERS]
    while options and not options[-1]:
        options.pop()
    there = [letter for letter, option in zip(LETTERS, options, strict=False) if option]
    if len(there) < 2:
        table.refuse(row, f"question {id!r} has {len(there)} options; at least two of A, B, C and D must be filled")
    if values["Answer"] not in there:
        table.refuse(row, f"Answer is {values['Answer']!r}; expected the letter of a filled option: {', '.join(there)}")
    further = {name: values[name] for name in extra}
    return Question(id, values["Slide"], values["Question"], tuple(options), values["Answer"], broad, narrow, further)


def _repeats(options: tuple[str, ...]) -> bool:
    filled = [option for option in options if option]
    return len(set(filled)) < len(filled)
