"""The truth of a rendered slide."""

from __future__ import annotations

from dataclasses import dataclass

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


def largest(truth: SlideTruth, names: tuple[str, ...]) -> str | None:
    """The class with most patches; None if two are tied."""
    counts = sorted(((truth.patches(name), name) for name in names), reverse=True)
    return counts[0][1] if counts[0][0] > counts[1][0] else None


def risk_group(truth: SlideTruth) -> str:
    """Risk of a slide with a tumour: low, intermediate or high.

    Points: grade - 1; one for a tumour of at least 2 % of the patches; one for necrosis of at least 15 %.
    0 or 1 point is low, 2 intermediate, 3 or 4 high.
    """
    points = truth.grade - 1 + (truth.share("tumour") >= 0.02) + (truth.share("necrosis") >= 0.15)
    return ("low", "low", "intermediate", "high", "high")[points]
