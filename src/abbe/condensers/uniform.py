"""K patches at equal steps of slide order, the usual way to thin out a long slide."""

from __future__ import annotations

import torch

from abbe.condensers.base import Condenser, select
from abbe.types import Condensed, TokenBatch


class Uniform(Condenser):
    """Rows floor(i (N − 1) / (K − 1)), i = 0..K−1, of each slide: the first, the last, and equal steps in between."""

    references = ("SlideChat: A Large Vision-Language Assistant for Whole-Slide Pathology Image Understanding (2025)",)
    small = {"tokens": 4}
    grid = {"tokens": [8, 16, 32, 64, 128]}
    selects = True
    order_dependent = True

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        kept = []
        for n, budget in zip(batch.lengths.tolist(), budgets, strict=True):
            k = min(n, budget)
            kept.append(torch.arange(k) * (n - 1) // max(k - 1, 1))
        return select(batch, kept)
