"""One token: the mean of all patches. What is lost when nothing is learned and nothing is kept apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abbe.condensers.base import Budget, Condenser
from abbe.ops.segments import segment_mean, segment_sum
from abbe.types import Assignment, Condensed, TokenBatch, offsets_of


class Mean(Condenser):
    """Mass-weighted mean over a slide's tokens. `tokens` may be any budget ≥ 1; one token is used."""

    merges = True

    def __init__(self, *, dim: int, tokens: int | float = 1) -> None:
        super().__init__(dim=dim, tokens=tokens)

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        return [min(1, n) for n in super().count(lengths, tokens=tokens, soft=soft)]

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        b = len(batch)
        slide, device = batch.slide_index, batch.features.device
        # In float32 and with a weight of zero for masked tokens, so that bf16 bags and chained slots come out right.
        amount = (batch.mass * batch.weight * batch.mask).float()
        total = segment_sum(amount, slide, b)
        mean = segment_mean(batch.features.float(), amount, slide, b)
        ones = torch.ones(b, device=device)
        tokens = TokenBatch(
            features=mean.to(batch.features.dtype),
            positions=None,
            mass=total,
            mask=total > 0,
            weight=ones,
            origin=torch.zeros(b, dtype=torch.int64, device=device),
            offsets=offsets_of([1] * b),
            lengths0=batch.lengths0,
            slide_ids=batch.slide_ids,
        )
        index = torch.where(batch.mask, 0, -1).to(torch.int32)[:, None]
        assignment = Assignment(index, batch.mask.to(batch.features.dtype)[:, None], batch.offsets)
        return Condensed(tokens, assignment, dropped=torch.zeros(b, dtype=torch.int64))
