"""What the numbers of tissue classes stand for: the rendered tissue's twelve, or those of a mosaic's patches."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.errors import InputError, nearest
from abbe.phantom.render.tissue import TISSUE_CLASSES


@dataclass(frozen=True)
class TissueClasses:
    """Names by class number. `rest`: the numbers without tumour; `a`, `b`: those of both subtypes, by rising grade."""

    names: tuple[str, ...]
    rest: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def tumours(self) -> tuple[int, ...]:
        """Every class that is tumour."""
        return self.a + self.b

    @property
    def graded(self) -> bool:
        """Whether grades 1 to 3 are told apart."""
        return len(self.a) == len(self.b) == 3

    def tumour(self, subtype: str, grade: int) -> int:
        """The class of a tumour; without grades each subtype has one."""
        of = self.a if subtype == "a" else self.b
        return of[grade - 1] if self.graded else of[0]

    def number(self, name: str) -> int:
        """The class of that name. Raises InputError where there is none."""
        if name not in self.names:
            raise InputError(
                f"no class {name!r} among these patches, which this task needs. {nearest(name, self.names)}"
            )
        return self.names.index(name)


def _numbers(start: str) -> tuple[int, ...]:
    return tuple(number for number, name in enumerate(TISSUE_CLASSES) if name.startswith(start))


PHANTOM = TissueClasses(
    TISSUE_CLASSES,
    tuple(number for number, name in enumerate(TISSUE_CLASSES) if not name.startswith("tumour")),
    _numbers("tumour_a"),
    _numbers("tumour_b"),
)
