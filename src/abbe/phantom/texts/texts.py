"""Reports, questions and captions of a cohort, composed from the truth of its slides."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from abbe.data.benchmarks.questions import LETTERS
from abbe.errors import InputError
from abbe.phantom.draw import number, pick, shuffled
from abbe.phantom.texts.reports import report_text
from abbe.phantom.texts.template import Template
from abbe.phantom.texts.templates_diagnosis import CLINICAL, DIAGNOSIS
from abbe.phantom.texts.templates_microscopy import MICROSCOPY
from abbe.phantom.texts.truth import SlideTruth
from abbe.store import commit

__all__ = ["TEMPLATES", "SlideTruth", "Template", "describe_questions", "make_questions", "write_texts"]

TEMPLATES: tuple[Template, ...] = (*MICROSCOPY, *DIAGNOSIS, *CLINICAL)
_CAPTION = (
    "Describe this slide.",
    "Write a report of this slide.",
    "What are the findings on this slide?",
    "Summarise the histology.",
)

Row = dict[str, str]


def write_texts(out: Path, truths: Sequence[SlideTruth], *, seed: int) -> dict[str, str]:
    """Commit reports.csv, questions.csv, captions.json and questions.json in `out`; return the SHA-256 of each.

    The order of `truths` does not change the bytes. The two json files are for training and hold train slides alone;
    the csv files hold every slide. Raises InputError if a slide_id is duplicated.
    """
    ordered = _by_slide_id(truths)
    reports = {truth.slide_id: report_text(truth, seed=seed) for truth in ordered}
    rows = make_questions(ordered, seed=seed)
    train = [truth.slide_id for truth in ordered if truth.split == "train"]
    captions = [_dialogue(name, name, pick(_CAPTION, seed, name, "caption"), reports[name]) for name in train]
    questions = [_question_dialogue(row) for row in rows if row["split"] == "train"]
    texts = {
        "reports.csv": ("reports", pd.DataFrame(reports.items(), columns=["slide_id", "text"]).to_csv(index=False)),
        "questions.csv": ("questions", pd.DataFrame(rows).to_csv(index=False)),
        "captions.json": ("slideinstruct", commit.to_json(captions)),
        "questions.json": ("slideinstruct", commit.to_json(questions)),
    }
    for name, (file_format, text) in texts.items():
        commit.write_text(out / name, text, format=file_format, seed=seed)
    return {name: commit.file_sha256(out / name) for name in texts}


def make_questions(truths: Sequence[SlideTruth], *, seed: int) -> list[Row]:
    """The rows of questions.csv, by slide and template; templates without one right option for a slide are left out.

    Within a split and template the right options, sorted by answer, cycle through the letters. The counts of two
    letters differ by at most one, overall and for each answer, so that a letter does not reveal the answer.
    """
    ordered = _by_slide_id(truths)
    asked = [
        (truth, template, answer)
        for truth in ordered
        for template in TEMPLATES
        if (answer := template.answer(truth)) is not None
    ]
    answers: dict[tuple[str, Template], list[tuple[str, str]]] = defaultdict(list)
    for truth, template, answer in asked:
        answers[truth.split, template].append((answer, truth.slide_id))
    places: dict[tuple[str, str], int] = {}
    for (split, template), pairs in answers.items():
        name, options = template.name, len(template.options)
        pairs.sort(key=lambda pair: (pair[0], number(seed, name, pair[1])))
        first = number(seed, split, name)  # a random first letter, or A would be the most frequent
        places |= {(name, slide_id): (first + turn) % options for turn, (_, slide_id) in enumerate(pairs)}
    return [
        {"ID": str(index), **_question(template, truth, answer, places[template.name, truth.slide_id], seed)}
        for index, (truth, template, answer) in enumerate(asked)
    ]


def describe_questions(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What guessing achieves for each split and template, from the rows of questions.csv.

    Keys: split, template, n, options, majority_answer, majority_answer_share (accuracy of a model that never sees a
    slide), majority_letter_share (accuracy of always answering one letter). A majority_answer_share near 1 means that
    the cohort hardly varies what the template asks.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["split"], row["template"]].append(row)
    described = []
    for (split, name), group in sorted(groups.items()):
        ((answer, count),) = Counter(row[row["Answer"]] for row in group).most_common(1)
        ((_, letter_count),) = Counter(row["Answer"] for row in group).most_common(1)
        described.append(
            {
                "split": split,
                "template": name,
                "n": len(group),
                "options": sum(1 for letter in LETTERS if group[0][letter]),
                "majority_answer": answer,
                "majority_answer_share": count / len(group),
                "majority_letter_share": letter_count / len(group),
            }
        )
    return described


def _question(template: Template, truth: SlideTruth, answer: str, place: int, seed: int) -> Row:
    key = (seed, truth.seed, truth.slide_id, template.name)
    last = len(template.paraphrases) - 1
    paraphrase = last if truth.split == "test" else pick(range(last), *key, "paraphrase")
    options = shuffled([option for option in template.options if option != answer], *key, "options")
    options.insert(place, answer)
    options += [""] * (len(LETTERS) - len(options))
    return {
        "Slide": truth.slide_id,
        "Tumor": "phantom",
        "Broad Category": template.broad,
        "Narrow Category": template.narrow,
        "Question": template.paraphrases[paraphrase],
        **dict(zip(LETTERS, options, strict=True)),
        "Answer": LETTERS[place],
        "split": truth.split,
        "template": template.name,
        "paraphrase": str(paraphrase),
    }


def _by_slide_id(truths: Sequence[SlideTruth]) -> list[SlideTruth]:
    ordered = sorted(truths, key=lambda truth: truth.slide_id)
    for one, other in itertools.pairwise(ordered):
        if one.slide_id == other.slide_id:
            raise InputError(f"slide_id {one.slide_id!r} is duplicated")
    return ordered


def _question_dialogue(row: Row) -> dict[str, Any]:
    options = {letter: f"{letter}. {row[letter]}" for letter in LETTERS if row[letter]}
    return _dialogue(row["ID"], row["Slide"], "\n".join([row["Question"], *options.values()]), options[row["Answer"]])


def _dialogue(name: str, slide_id: str, human: str, gpt: str) -> dict[str, Any]:
    conversation = [{"from": "human", "value": f"<image>\n{human}"}, {"from": "gpt", "value": gpt}]
    return {"id": name, "image": [f"{slide_id}.csv"], "conversations": conversation}
