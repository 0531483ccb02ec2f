"""Farthest-point sampling: each next point is the one least like all points taken so far."""

from __future__ import annotations

import torch
from torch import Tensor


def farthest_points(rows_ND: Tensor, k: int) -> Tensor:
    """int64 [min(k, N)]: rows in the order they were taken, by cosine; the first is the row nearest the mean row.

    One matrix–vector product a point: O(N · D · k) time, O(N) memory besides the rows. The first of equals is taken.
    Source: Gonzalez 1985. Truth: `abbe.ops.naive.farthest_points`.
    """
    n = len(rows_ND)
    inverse = rows_ND.norm(dim=1).clamp_min(1e-12).reciprocal()

    def likeness(direction: Tensor) -> Tensor:
        return (rows_ND @ direction) * inverse / direction.norm().clamp_min(1e-12)

    taken = torch.empty(min(k, n), dtype=torch.int64, device=rows_ND.device)
    nearest = rows_ND.new_full((n,), -torch.inf)
    following = likeness(rows_ND.mean(0)).argmax()
    for i in range(len(taken)):
        taken[i] = following
        nearest = torch.maximum(nearest, likeness(rows_ND[following]))
        nearest[following] = torch.inf  # never twice, also where rows are equal
        following = nearest.argmin()
    return taken
