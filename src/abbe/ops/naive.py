"""The slow, readable truth of each op: loops over slides, tokens and slots, in float64. Tests compare against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def routed_mean(
    x: Tensor, logits: Tensor, offsets: Sequence[int], amount: Tensor, top_k: int = 2, eps: float = 1e-9
) -> tuple[Tensor, Tensor]:
    """(centres [B, K, D], mass [B, K]) as `abbe.ops.routing.routed_mean` defines them."""
    x, logits, amount = x.double(), logits.double(), amount.double()
    k = logits.shape[1]
    centres, masses = [], []
    for start, stop in pairwise(offsets):
        sums = [torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(k)]
        mass = [torch.zeros((), dtype=torch.float64) for _ in range(k)]
        for j in range(start, stop):
            p = torch.stack([(z - logits[j].max()).exp() for z in logits[j]])
            p = p / p.sum()
            best = sorted(range(k), key=lambda slot: -float(p[slot].detach()))[: min(top_k, k)]
            for slot in best:
                sums[slot] = sums[slot] + amount[j] * p[slot] * x[j]
                mass[slot] = mass[slot] + amount[j] * p[slot]
        centres.append(torch.stack([s / (m + eps) for s, m in zip(sums, mass, strict=True)]))
        masses.append(torch.stack(mass))
    return torch.stack(centres), torch.stack(masses)


def segment_softmax(logits: Sequence[float], offsets: Sequence[int]) -> list[float]:
    """Softmax over each slide's tokens, one exponential at a time."""
    out: list[float] = []
    for start, stop in pairwise(offsets):
        weights = [math.exp(z) for z in logits[start:stop]]
        out += [w / sum(weights) for w in weights]
    return out
