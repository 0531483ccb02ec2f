"""The slide at low resolution: means over a coarse grid of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from abbe.condensers.base import Budget, Condenser, merge_groups
from abbe.types import Condensed, TokenBatch


class Thumbnail(Condenser):
    """Means over ⌊√K⌋ × ⌊√K⌋ equal cells of the tissue's bounding box, row by row; cells without tissue are masked."""

    small = {"tokens": 4}
    grid = {"tokens": [4, 16, 36, 64, 121]}
    merges = True
    needs_positions = True

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        """⌊√K⌋² for every slide, because cell i is always token i."""
        return [math.isqrt(k) ** 2 for k in self.budgets(torch.as_tensor(lengths, dtype=torch.int64), tokens)]

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        sides = [math.isqrt(k) for k in budgets]
        groups = [_cell(slide, side) for slide, side in zip(batch, sides, strict=True)]
        return merge_groups(batch, torch.cat(groups), [side * side for side in sides], placed=True)


def _cell(slide: TokenBatch, side: int) -> Tensor:
    """int64 [N]: the cell of each patch of one slide, row by row; −1 for a masked one."""
    assert slide.positions is not None
    group = torch.full((len(slide.features),), -1, dtype=torch.int64, device=slide.features.device)
    xy = slide.positions[slide.mask].double()
    if len(xy):
        low, high = xy.min(0).values - 0.5, xy.max(0).values + 0.5  # positions are centres of patches
        column, row = ((xy - low) / (high - low) * side).long().clamp_max(side - 1).unbind(1)
        group[slide.mask] = row * side + column
    return group
