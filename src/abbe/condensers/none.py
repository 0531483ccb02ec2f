"""All patches, untouched: the upper bound every condenser is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abbe.condensers.base import Budget, Condenser, select
from abbe.types import Condensed, TokenBatch


class Unchanged(Condenser):
    """Every patch is a token. The budget is all there is: `tokens` may be left out or 1.0."""

    selects = True

    def __init__(self, *, dim: int, tokens: float = 1.0) -> None:
        super().__init__(dim=dim, tokens=tokens)

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """All patches of each slide, whatever is asked: it is the reference a budget is compared with."""
        super().budgets(lengths, tokens)
        return [int(n) for n in lengths]

    def condense(self, batch: TokenBatch, budgets: Sequence[int], *, soft: bool) -> Condensed:
        return select(batch, [torch.arange(int(n)) for n in batch.lengths])
