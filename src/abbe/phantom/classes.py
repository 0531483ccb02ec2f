"""What class numbers mean: the twelve rendered tissues, or the classes of a mosaic's patches."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.errors import InputError, nearest
from abbe.phantom.render.tissue import TISSUE_CLASSES


@dataclass(frozen=True)
class TissueClasses:
    """Class names by number. rest: classes without tumour.  a, b: classes of the two tumour subtypes, by grade."""

    names: tuple[str, ...]
    rest: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def tumours(self) -> tuple[int, ...]:
        """Every tumour class."""
        return self.a + self.b

    @property
    def graded(self) -> bool:
        """Whether each subtype has a class for each of grades 1 to 3."""
        return len(self.a) == len(self.b) == 3

    def tumour(self, subtype: str, grade: int) -> int:
        """The class of a tumour; without grades each subtype has one class."""
        classes = self.a if subtype == "a" else self.b
        return classes[grade - 1] if self.graded else classes[0]

    def number(self, name: str) -> int:
        """The class with this name. Raises InputError if there is none."""
        if name not in self.names:
            raise InputError(f"the task needs a class {name!r}, which these patches lack. {nearest(name, self.names)}")
        return self.names.index(name)


def _numbers(prefix: str) -> tuple[int, ...]:
    return tuple(number for number, name in enumerate(TISSUE_CLASSES) if name.startswith(prefix))


PHANTOM = TissueClasses(
    TISSUE_CLASSES,
    rest=tuple(number for number, name in enumerate(TISSUE_CLASSES) if not name.startswith("tumour")),
    a=_numbers("tumour_a"),
    b=_numbers("tumour_b"),
)
