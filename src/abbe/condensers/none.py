"""All patches, unchanged: what budgets are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abbe.condensers.base import Budget, Condenser, select
from abbe.types import Condensed, TokenBatch


class Unchanged(Condenser):
    """Every patch is a token. `tokens` is accepted and ignored."""

    selects = True
    keeps_everything = True

    def __init__(self, *, dim: int, tokens: int | float = 1.0) -> None:
        super().__init__(dim=dim, tokens=tokens)
        self.tokens = 1.0  # so that no record shows a smaller budget

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """All patches of each slide, whatever the budget, which is still checked."""
        super().budgets(lengths, tokens)
        return [int(n) for n in lengths]

    def condense(self, batch: TokenBatch, budgets: Sequence[int], *, soft: bool) -> Condensed:
        return select(batch, [torch.arange(int(n)) for n in batch.lengths])
