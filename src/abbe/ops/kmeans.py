"""k-means: k-means++ seeds, then Lloyd's steps until no row changes its centre."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 16_384  # rows whose distances to the centres are computed at once


def kmeans(rows_ND: Tensor, k: int, *, generator: torch.Generator, steps: int = 20) -> Tensor:
    """Centres [min(k, N), D] of rows [N, D]. All random draws come from `generator`, on the CPU.

    A centre without rows does not move. Sources: Lloyd 1982; Arthur & Vassilvitskii 2007 (seeds).
    """
    centres = _seeds(rows_ND, min(k, len(rows_ND)), generator)
    before = None
    for _ in range(steps):
        nearest = nearest_centre(rows_ND, centres)
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        count = torch.zeros(len(centres), device=rows_ND.device).index_add_(0, nearest, rows_ND.new_ones(len(rows_ND)))
        total = torch.zeros_like(centres).index_add_(0, nearest, rows_ND)
        centres = torch.where(count[:, None] > 0, total / count.clamp_min(1)[:, None], centres)
    return centres


def nearest_centre(rows_ND: Tensor, centres_KD: Tensor) -> Tensor:
    """int64 [N]: the nearest centre of each row by Euclidean distance; ties go to the first centre."""
    half = centres_KD.square().sum(1) / 2
    return torch.cat([(half - rows @ centres_KD.T).argmin(1) for rows in rows_ND.split(CHUNK)])


def _seeds(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """[k, D]: k-means++: each seed is drawn with probability ∝ its squared distance to the nearest seed before it."""
    squares = rows.square().sum(1)
    distance = torch.full_like(squares, torch.inf)
    seed = int(torch.randint(len(rows), (1,), generator=generator))
    seeds = []
    for _ in range(k):
        seeds.append(seed)
        here = squares - 2 * (rows @ rows[seed]) + squares[seed]
        here[seed] = 0.0
        distance = torch.minimum(distance, here.clamp_min(0.0))
        total = distance.double().cumsum(0)
        draw = torch.rand((), generator=generator, dtype=torch.float64).to(total.device) * total[-1]
        seed = min(int(torch.searchsorted(total, draw, right=True)), len(rows) - 1)
    return rows[torch.tensor(seeds, device=rows.device)]
