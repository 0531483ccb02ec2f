"""One token: the mean of all patches. What is lost when nothing is learned and nothing is kept apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abbe.condensers.base import Budget, Condenser, Stream, merge_groups, no_assignment
from abbe.types import Assignment, Condensed, TokenBatch


class Mean(Condenser):
    """Mass-weighted mean over a slide's tokens. `tokens` may be any budget ≥ 1; one token is used."""

    merges = True
    streams = True

    def __init__(self, *, dim: int, tokens: int | float = 1) -> None:
        super().__init__(dim=dim, tokens=tokens)

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        return [min(1, n) for n in super().count(lengths, tokens=tokens, soft=soft)]

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        one_group = torch.zeros(len(batch.features), dtype=torch.int64, device=batch.features.device)
        return merge_groups(batch, one_group, [1] * len(batch))

    def stream(self, slide_id: str) -> Stream:
        return _MeanStream(self, slide_id)


class _MeanStream(Stream):
    total: Tensor | None = None

    def take(self, chunk: TokenBatch) -> Assignment:
        total = chunk.features.sum(0, keepdim=True, dtype=torch.float64)
        self.total, self.dtype = total if self.total is None else self.total + total, chunk.features.dtype
        ones = chunk.features.new_ones(len(chunk.features), 1)
        return Assignment((ones < 0).to(torch.int32), ones, chunk.offsets)

    def close(self) -> Condensed:
        assert self.total is not None
        one = torch.ones(1, device=self.total.device)
        tokens = TokenBatch(
            features=(self.total / self.seen).to(self.dtype),
            positions=None,
            mass=one * self.seen,
            mask=one > 0,
            weight=one,
            origin=torch.zeros(1, dtype=torch.int64, device=one.device),
            offsets=torch.tensor([0, 1]),
            lengths0=torch.tensor([self.seen]),
            slide_ids=(self.slide_id,),
        )
        return Condensed(tokens, no_assignment(1, tokens.features), dropped=torch.tensor([0]))
