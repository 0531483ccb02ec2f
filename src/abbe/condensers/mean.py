"""One token: the mean of all patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from abbe.condensers.base import Budget, Condenser, merge_groups
from abbe.condensers.streaming import Stream, no_assignment, one_slide
from abbe.types import Assignment, Condensed, TokenBatch


class Mean(Condenser):
    """The mean of a slide's patches, weighted by mass. Any budget is accepted; one token is used."""

    merges = True
    streams = True

    def __init__(self, *, dim: int, tokens: int | float = 1) -> None:
        super().__init__(dim=dim, tokens=tokens)

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        return [min(1, n) for n in super().count(lengths, tokens=tokens, soft=soft)]

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        one_group = torch.zeros(len(batch.features), dtype=torch.int64, device=batch.features.device)
        return merge_groups(batch, one_group, [1] * len(batch))

    def stream(self, slide_id: str) -> _MeanStream:
        return _MeanStream(self, slide_id)


class _MeanStream(Stream):
    total: Tensor | None = None

    def take(self, chunk: TokenBatch) -> Assignment:
        total = chunk.features.sum(0, keepdim=True, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        ones = chunk.features.new_ones(len(chunk.features), 1)
        return Assignment((ones < 0).to(torch.int32), ones, chunk.offsets)

    def close(self) -> Condensed:
        assert self.total is not None
        mean, origin = (self.total / self.seen).to(self.dtype), self.total.new_zeros(1, dtype=torch.int64)
        tokens = one_slide(mean, None, origin, slide_id=self.slide_id, patches=self.seen)
        tokens = replace(tokens, mass=tokens.mass * self.seen)
        return Condensed(tokens, no_assignment(1, mean), dropped=torch.tensor([0]))
