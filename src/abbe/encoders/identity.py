"""No slide encoder: tokens pass through unchanged."""

from __future__ import annotations

import torch

from abbe.encoders.base import Between, Encoder
from abbe.types import Assignment, Condensed, TokenBatch


class Identity(Encoder):
    """Returns the batch itself as a Condensed. There are no blocks, so `between` is never called."""

    def forward(self, batch: TokenBatch, *, between: Between | None = None) -> Condensed:
        self._check(batch)
        return Condensed(batch, identity_assignment(batch), torch.zeros(len(batch), dtype=torch.int64))


def identity_assignment(batch: TokenBatch) -> Assignment:
    """The assignment of a stage in which every token stays as it is."""
    device = batch.features.device
    rows = torch.cat([torch.arange(int(n), dtype=torch.int32) for n in batch.lengths]).to(device)
    return Assignment(rows[:, None], torch.ones(len(rows), 1, device=device), batch.offsets)
