"""No slide encoder: tokens go through untouched."""

from __future__ import annotations

import torch

from abbe.encoders.base import Between, Encoder
from abbe.types import Assignment, Condensed, TokenBatch


class Identity(Encoder):
    """The batch itself, as a Condensed. It has no blocks, so `between` is never called."""

    def forward(self, batch: TokenBatch, *, between: Between | None = None) -> Condensed:
        self._check(batch)
        return Condensed(batch, identity_assignment(batch), torch.zeros(len(batch), dtype=torch.int64))


def identity_assignment(batch: TokenBatch) -> Assignment:
    """Each token of the batch is its own."""
    device = batch.features.device
    rows = torch.cat([torch.arange(int(n), dtype=torch.int32) for n in batch.lengths]).to(device)
    return Assignment(rows[:, None], torch.ones(len(rows), 1, device=device), batch.offsets)
