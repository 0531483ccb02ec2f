"""The four types everything flows through, with their invariants checked at construction.

Shape legend, used in every docstring and in suffixes where they help:
    N  patches of one slide          P  original patches of all slides of a batch
    T  tokens of all slides, packed  B  slides     K  token budget
    D  width                         R  routes of a patch (1 for selection and merging, 2 for TC-SSA)
"""

from __future__ import annotations

from abbe.types.assignment import Assignment
from abbe.types.bag import Bag
from abbe.types.batch import TokenBatch
from abbe.types.condensed import Condensed
from abbe.types.packed import offsets_of
from abbe.types.units import MPP, Micrometres, Px0

__all__ = ["MPP", "Assignment", "Bag", "Condensed", "Micrometres", "Px0", "TokenBatch", "offsets_of"]
