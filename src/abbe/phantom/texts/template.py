"""Templates of questions, and the rules that read their answers from the truth of a slide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from abbe.phantom.texts.truth import PATTERNS, SlideTruth, largest

NO_TUMOUR = "no tumour is seen"
_AMOUNTS = ("none", "under 15 %", "15 % to 30 %", "over 30 %")


class Rule(NamedTuple):
    """The options of a question, and the one that is right by the truth; None if no single one is."""

    options: tuple[str, ...]
    answer: Callable[[SlideTruth], str | None]


@dataclass(frozen=True)
class Template:
    """One question that can be asked about every slide.

    options: fixed, so that the form of a question does not reveal its answer.  answer: the right one of `options`, or
    None, and the question is not asked.  paraphrases: at least four; the last is asked in the test split alone.
    """

    name: str
    broad: str
    narrow: str
    options: tuple[str, ...]
    answer: Callable[[SlideTruth], str | None] = field(repr=False)
    paraphrases: tuple[str, ...] = field(repr=False)


def category(broad: str, narrow: str) -> Callable[..., Template]:
    """A function that makes the templates of one category of SlideBench: name, rule, paraphrases."""

    def template(name: str, rule: Rule, *paraphrases: str) -> Template:
        return Template(name, broad, narrow, *rule, paraphrases)

    return template


def yes_if(condition: Callable[[SlideTruth], bool | None]) -> Rule:
    """Yes or no; not asked if the condition is None."""
    return Rule(("yes", "no"), lambda truth: {True: "yes", False: "no", None: None}[condition(truth)])


def if_tumour(options: tuple[str, ...], answer: Callable[[SlideTruth], str]) -> Rule:
    """One of the options for a slide with a tumour, NO_TUMOUR for others."""
    return Rule((*options, NO_TUMOUR), lambda truth: answer(truth) if truth.grade else NO_TUMOUR)


def by_grade(*words: str) -> Rule:
    """One of three words for grades 1, 2 and 3."""
    return if_tumour(words, lambda truth: words[truth.grade - 1])


def by_subtype(*words: str) -> Rule:
    """One of two words for subtypes a and b."""
    return if_tumour(words, lambda truth: words["ab".index(truth.subtype)])


def by_pattern(*words: str) -> Rule:
    """One of three words for lymphocytes inside the tumour, at its margin, or neither."""
    return if_tumour(words, lambda truth: words[PATTERNS.index(truth.til_pattern)])


def amount(name: str) -> Rule:
    """The share of a class in words. 15 % and 30 % belong to the third."""

    def answer(truth: SlideTruth) -> str:
        share = truth.share(name)
        return _AMOUNTS[(share > 0) + (share >= 0.15) + (share > 0.30)]

    return Rule(_AMOUNTS, answer)


def most_of(*names: str, words: tuple[str, ...] | None = None) -> Rule:
    """The class with most patches, not asked if two are tied. words: what to call the classes."""
    options = words or names

    def answer(truth: SlideTruth) -> str | None:
        most = largest(truth, names)
        return None if most is None else options[names.index(most)]

    return Rule(options, answer)
