"""All patches, untouched: the upper bound every condenser is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from abbe.condensers.base import Budget, Condenser, select
from abbe.types import Condensed, TokenBatch


class Unchanged(Condenser):
    """Every patch is a token. The budget is all there is: `tokens` may be left out or 1.0."""

    selects = True

    def __init__(self, *, dim: int, tokens: int | float = 1.0) -> None:
        super().__init__(dim=dim, tokens=tokens)
        self.tokens = 1.0  # whatever was asked, so that no record takes it for a smaller budget

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """All patches of each slide, whatever is asked: it is the reference a budget is compared with."""
        super().budgets(lengths, tokens)
        return [int(n) for n in lengths]

    def _on_valid(self, batch: TokenBatch, run: Callable[[TokenBatch], Condensed]) -> Condensed:
        return run(batch)  # nothing is chosen, so an empty slot stays one

    def condense(self, batch: TokenBatch, budgets: Sequence[int], *, soft: bool) -> Condensed:
        return select(batch, [torch.arange(int(n)) for n in batch.lengths])
