"""The truth of a rendered slide, and the rules that read the answer of a question from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from abbe.data import SPLITS
from abbe.errors import InputError
from abbe.phantom.render.tissue import TISSUE_CLASSES

PATTERNS = ("inside", "margin", "none")
SUBTYPES = ("a", "b", "")


@dataclass(frozen=True)
class SlideTruth:
    """The truth of one slide. Raises InputError if its parts contradict each other.

    counts: patches of each class of TISSUE_CLASSES; they add up to `n_patches`, and classes left out have none.
    subtype, grade: of the tumour; "" and 0 if and only if the slide has no tumour patch.
    metastasis: None if unknown.  til_pattern: where lymphocytes meet the tumour.
    deposit_patches: size of the largest connected tumour deposit.  seed: of the slide.
    """

    slide_id: str
    case_id: str
    site: int
    split: str
    n_patches: int
    counts: dict[str, int]
    subtype: str
    grade: int
    metastasis: bool | None
    til_pattern: str
    deposit_patches: int
    seed: int

    def __post_init__(self) -> None:
        unknown = sorted(set(self.counts) - set(TISSUE_CLASSES))
        self._require(not unknown, f"counts has the unknown classes {unknown}")
        self._require(min(self.counts.values(), default=0) >= 0, "counts has a negative number")
        total = sum(self.counts.values())
        self._require(total == self.n_patches > 0, f"counts add up to {total}, n_patches is {self.n_patches}")
        for name, value, known in (
            ("split", self.split, SPLITS),
            ("subtype", self.subtype, SUBTYPES),
            ("grade", self.grade, (0, 1, 2, 3)),
            ("til_pattern", self.til_pattern, PATTERNS),
        ):
            self._require(value in known, f"{name} is {value!r}; expected one of {known}")
        classes = {name for name, count in self.counts.items() if count and name.startswith("tumour")}
        expected = {f"tumour_{self.subtype}{self.grade}"} if self.subtype or self.grade else set()
        self._require(classes == expected, f"subtype {self.subtype!r}, grade {self.grade}, but counts has {classes}")
        most = self.tumour_patches
        self._require(
            min(1, most) <= self.deposit_patches <= most,
            f"deposit_patches is {self.deposit_patches} of {most} tumour patches",
        )

    @property
    def tumour_patches(self) -> int:
        """Patches of any tumour class."""
        return sum(count for name, count in self.counts.items() if name.startswith("tumour"))

    def patches(self, name: str) -> int:
        """Patches of a class."""
        return self.counts.get(name, 0)

    def share(self, name: str) -> float:
        """Share of the slide's patches. name: a class, or "tumour" for all tumour classes."""
        return (self.tumour_patches if name == "tumour" else self.patches(name)) / self.n_patches

    def _require(self, fine: bool, message: str) -> None:  # noqa: FBT001
        if not fine:
            raise InputError(f"truth of slide {self.slide_id!r}: {message}")


@dataclass(frozen=True)
class Template:
    """One question that can be asked about every slide.

    options: fixed, so that the form of a question does not reveal its answer.  answer: the right one of `options` by
    the truth, or None if no single option is right; the question is not asked then.
    paraphrases: at least four; the last is asked in the test split alone.
    """

    name: str
    broad: str
    narrow: str
    options: tuple[str, ...]
    answer: Callable[[SlideTruth], str | None] = field(repr=False)
    paraphrases: tuple[str, ...] = field(repr=False)


def category(broad: str, narrow: str) -> Callable[..., Template]:
    """A function that makes the templates of one category of SlideBench."""

    def template(
        name: str, options: tuple[str, ...], answer: Callable[[SlideTruth], str | None], *paraphrases: str
    ) -> Template:
        return Template(name, broad, narrow, options, answer, paraphrases)

    return template


NO_TUMOUR = "no tumour is seen"
AMOUNTS = ("none", "under 15 %", "15 % to 30 %", "over 30 %")


def amount(truth: SlideTruth, name: str) -> str:
    """Share of a class in words: one of AMOUNTS. 15 % and 30 % belong to the third."""
    share = truth.share(name)
    return AMOUNTS[(share > 0) + (share >= 0.15) + (share > 0.30)]


def largest(truth: SlideTruth, names: tuple[str, ...]) -> str | None:
    """The class with most patches; None if two are tied."""
    counts = sorted(((truth.patches(name), name) for name in names), reverse=True)
    return counts[0][1] if counts[0][0] > counts[1][0] else None


def by_grade(truth: SlideTruth, words: tuple[str, str, str]) -> str:
    """One of three words for grades 1, 2 and 3; NO_TUMOUR without a tumour."""
    return words[truth.grade - 1] if truth.grade else NO_TUMOUR


def by_subtype(truth: SlideTruth, words: tuple[str, str]) -> str:
    """One of two words for subtypes a and b; NO_TUMOUR without a tumour."""
    return words["ab".index(truth.subtype)] if truth.subtype else NO_TUMOUR


def by_pattern(truth: SlideTruth, words: tuple[str, str, str]) -> str:
    """One of three words for lymphocytes inside, at the margin, or neither; NO_TUMOUR without a tumour."""
    return words[PATTERNS.index(truth.til_pattern)] if truth.grade else NO_TUMOUR


def yes(truth: bool) -> str:  # noqa: FBT001
    """ "yes" or "no"."""
    return "yes" if truth else "no"


def risk_group(truth: SlideTruth) -> str:
    """low | intermediate | high; NO_TUMOUR without a tumour.

    Points: grade - 1; one for a tumour of at least 2 % of the patches; one for necrosis of at least 15 %.
    0 or 1 point is low, 2 intermediate, 3 or 4 high.
    """
    if not truth.grade:
        return NO_TUMOUR
    points = truth.grade - 1 + (truth.share("tumour") >= 0.02) + (truth.share("necrosis") >= 0.15)
    return ("low", "low", "intermediate", "high", "high")[points]
