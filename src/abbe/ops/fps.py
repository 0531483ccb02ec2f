"""Farthest-point sampling: each next point is the one least similar to all points taken so far."""

from __future__ import annotations

import torch
from torch import Tensor


def farthest_points(rows_ND: Tensor, k: int) -> Tensor:
    """int64 [min(k, N)]: rows in the order they are taken, by cosine, starting with the row nearest the mean row.

    One matrix–vector product per point: O(N · D · k) time, O(N) additional memory. Ties go to the first row.
    Source: Gonzalez 1985. Reference: `abbe.ops.naive.farthest_points`.
    """
    n = len(rows_ND)
    inverse = rows_ND.norm(dim=1).clamp_min(1e-12).reciprocal()

    def cosine(direction: Tensor) -> Tensor:
        return (rows_ND @ direction) * inverse / direction.norm().clamp_min(1e-12)

    taken = torch.empty(min(k, n), dtype=torch.int64, device=rows_ND.device)
    nearest = rows_ND.new_full((n,), -torch.inf)
    following = cosine(rows_ND.mean(0)).argmax()
    for i in range(len(taken)):
        taken[i] = following
        nearest = torch.maximum(nearest, cosine(rows_ND[following]))
        nearest[following] = torch.inf  # never taken twice, even if rows are equal
        following = nearest.argmin()
    return taken
