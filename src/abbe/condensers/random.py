"""K patches at random: the baseline every learned selection must beat."""

from __future__ import annotations

from torch import Tensor

from abbe.condensers.base import Condenser, select
from abbe.condensers.streaming import SelectStream
from abbe.ops.hashing import hash_rows
from abbe.types import Condensed, TokenBatch


class Random(Condenser):
    """Keeps the K patches with the smallest hash of (seed, slide_id, row).

    The row is the patch's row in its bag (`origin`), so a slide keeps the same patches alone, in a batch, streamed, or
    with its rows permuted.
    """

    references = ("Fast Splittable Pseudorandom Number Generators (Steele, Lea & Flood 2014)",)
    small = {"tokens": 4}
    grid = {"tokens": [8, 16, 32, 64, 128]}
    selects = True
    streams = True

    def __init__(self, *, dim: int, tokens: int | float = 32, seed: int = 0) -> None:
        super().__init__(dim=dim, tokens=tokens)
        self.seed = seed

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        kept = [
            self.random_keys(slide).topk(min(k, len(slide.features))).indices
            for slide, k in zip(batch, budgets, strict=True)
        ]
        return select(batch, [rows.sort().values for rows in kept])

    def random_keys(self, slide: TokenBatch) -> Tensor:
        """int64 [N] on the CPU: a random key for each patch of one slide; the K largest are kept."""
        return hash_rows(self.seed, slide.slide_ids[0], slide.origin)

    def stream(self, slide_id: str) -> SelectStream:
        return SelectStream(self, slide_id, lambda chunk: self.random_keys(chunk).to(chunk.features.device))
