"""Bipartite merging: the most similar neighbours are merged, at most half of the tokens per round."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def merge_to(rows_ND: Tensor, amount_N: Tensor, k: int, *, window: int = 1024) -> Tensor:
    """int64 [N]: group of each row, min(k, N) groups, numbered by the first row of each.

    rows_ND: [N, D], ordered so that neighbours are near each other.  amount_N: [N] > 0, weight in means.

    A round works on windows of `window` tokens. In each, every second token is matched with the most similar (cosine)
    of the others and merged into it: the weighted mean takes the place of the match. The last round merges only as many
    as needed, the most similar first. Time O(N · window · D), no matrix larger than window² / 4.
    After Bolya et al. 2023 (token merging), here within windows and in order. Reference: `abbe.ops.naive.merge_to`.
    """
    device = rows_ND.device
    group = torch.arange(len(rows_ND), device=device)
    rows, amount = rows_ND, amount_N.to(rows_ND.dtype)
    while len(rows) > k:
        similarity, source, target = _matches(rows, window)
        join = similarity.argsort(descending=True, stable=True)[: len(rows) - k]
        source, target = source[join], target[join]
        into = torch.arange(len(rows), device=device)
        into[source] = target
        stays = torch.ones(len(rows), dtype=torch.bool, device=device)
        stays[source] = False
        into = (stays.cumsum(0) - 1)[into]  # new numbers without the merged rows
        total = amount.new_zeros(int(stays.sum())).index_add_(0, into, amount)
        share = (amount / total.clamp_min(1e-9)[into])[:, None]
        rows = rows.new_zeros(len(total), rows.shape[1]).index_add_(0, into, rows * share)
        group, amount = into[group], total
    return group


def _matches(rows: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """(cosine, row, best match) of every second row, window by window."""
    unit = F.normalize(rows, dim=1)
    best, source, target = [], [], []
    for start in range(0, len(rows), window):
        part = unit[start : start + window]
        if len(part) < 2:
            continue
        value, partner = (part[1::2] @ part[0::2].T).max(1)
        best.append(value)
        source.append(start + 1 + 2 * torch.arange(len(value), device=rows.device))
        target.append(start + 2 * partner)
    return torch.cat(best), torch.cat(source), torch.cat(target)
