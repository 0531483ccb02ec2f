"""A slow, readable reference of each op: loops over slides, tokens and slots, in float64. Tests compare with it."""

from __future__ import annotations

import cmath
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


def soft_topk(u: Tensor, budgets: Sequence[float], offsets: Sequence[int]) -> Tensor:
    """[T] weights of `abbe.ops.soft_topk`, in float64 with autograd.

    t comes from plain bisection on Python floats; one Newton step on tensors then gives it a gradient.
    """
    out = []
    for (start, stop), k in zip(pairwise(offsets), budgets, strict=True):
        s = u[start:stop].double()
        if k >= stop - start:
            out.append(torch.ones_like(s))
            continue
        values = s.detach().tolist()
        low, high = min(values) - 1e3, max(values) + 1e3
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(_sigmoid(x - middle) for x in values) > k else (low, middle)
        total = torch.sigmoid(s - low).sum()
        slope = sum(_sigmoid(x - low) * _sigmoid(low - x) for x in values)
        out.append(torch.sigmoid(s - (low + (total - k) / slope)))
    return torch.cat(out)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def rope2d(x: Tensor, positions: Tensor, theta: float = 100.0) -> Tensor:
    """[T, H, C] rotated as by `abbe.ops.rope2d`: each channel pair is a complex number, times e^(i · angle)."""
    t, h, c = x.shape
    n = c // 4
    out = torch.zeros(t, h, c, dtype=torch.float64)
    for token in range(t):
        for pair in range(c // 2):
            axis, i = (0, pair) if pair < n else (1, pair - n)
            angle = complex(0, 1) * float(positions[token, axis]) * theta ** (-i / n)
            for head in range(h):
                a, b = float(x[token, head, 2 * pair]), float(x[token, head, 2 * pair + 1])
                rotated = complex(a, b) * cmath.exp(angle)
                out[token, head, 2 * pair], out[token, head, 2 * pair + 1] = rotated.real, rotated.imag
    return out


def dilated_attention(
    q: Tensor, k: Tensor, v: Tensor, branches: Sequence[tuple[int, int]], rows: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """(output, lse) of one sequence [N, H, C]: a dense softmax in which a key counts once per branch that contains it.

    rows: the queries to compute, all by default.
    """
    n, heads, width = q.shape
    at = torch.arange(n)
    queries = at if rows is None else torch.as_tensor(rows)
    outputs, sums = [], []
    for head in range(heads):
        times = torch.zeros(len(queries), n, dtype=torch.float64)
        for segment, dilation in branches:
            on_grid = (at % segment) % dilation == head % dilation
            same_segment = queries[:, None] // segment == at // segment
            times += same_segment & on_grid & on_grid[queries, None]
        scores = (q[queries, head].double() @ k[:, head].double().T) / math.sqrt(width)
        lse = (scores + times.log()).logsumexp(1)
        weights = times * (scores - torch.where(lse.isfinite(), lse, 0.0)[:, None]).exp()
        outputs.append(weights @ v[:, head].double())
        sums.append(lse)
    return torch.stack(outputs, 1), torch.stack(sums, 1)


def farthest_points(rows: Tensor, k: int) -> list[int]:
    """Rows in the order `abbe.ops.fps.farthest_points` takes them."""
    unit = [row / row.norm().clamp_min(1e-12) for row in rows.double()]
    centre = rows.double().mean(0)
    centre = centre / centre.norm().clamp_min(1e-12)
    taken = [max(range(len(unit)), key=lambda i: float(unit[i] @ centre))]
    while len(taken) < min(k, len(unit)):
        rest = [i for i in range(len(unit)) if i not in taken]
        taken.append(min(rest, key=lambda i: max(float(unit[i] @ unit[j]) for j in taken)))
    return taken


def merge_to(rows: Tensor, amounts: Sequence[float], k: int, window: int) -> list[int]:
    """The group of each row, numbered as by `abbe.ops.merge.merge_to`: lists of members, merged pair by pair."""
    members = [[i] for i in range(len(rows))]
    while len(members) > k:
        means = [_weighted_mean(rows, amounts, group) for group in members]
        pairs = []
        for start in range(0, len(members), window):
            stop = min(start + window, len(members))
            for i in range(start + 1, stop, 2):
                partner = max(range(start, stop, 2), key=lambda j: float(means[i] @ means[j]))
                pairs.append((float(means[i] @ means[partner]), i, partner))
        pairs.sort(key=lambda pair: -pair[0])
        for _, i, partner in pairs[: len(members) - k]:
            members[partner] = members[partner] + members[i]
            members[i] = []
        members = [group for group in members if group]
    return [next(g for g, group in enumerate(members) if i in group) for i in range(len(rows))]


def _weighted_mean(rows: Tensor, amounts: Sequence[float], group: list[int]) -> Tensor:
    """The weighted mean of rows, normalised."""
    total = torch.stack([amounts[i] * rows[i].double() for i in group]).sum(0)
    return total / total.norm()


def kmeans_step(rows: Tensor, centres: Tensor) -> tuple[list[int], Tensor]:
    """(nearest centre of each row, the centres after one of Lloyd's steps)."""
    nearest = [min(range(len(centres)), key=lambda k: float((row - centres[k]).double().norm())) for row in rows]
    moved = [rows[[i for i, n in enumerate(nearest) if n == k]] for k in range(len(centres))]
    return nearest, torch.stack([part.mean(0) if len(part) else centres[k] for k, part in enumerate(moved)])


def hilbert_curve(bits: int) -> list[tuple[int, int]]:
    """All cells of a 2^bits grid in the order of the Hilbert curve: four rotated copies of the next coarser curve."""
    if bits == 0:
        return [(0, 0)]
    half, quarter = 2 ** (bits - 1), hilbert_curve(bits - 1)
    lower_left = [(y, x) for x, y in quarter]
    upper = [(x, y + half) for x, y in quarter]
    upper_right = [(x + half, y + half) for x, y in quarter]
    lower_right = [(2 * half - 1 - y, half - 1 - x) for x, y in quarter]
    return lower_left + upper + upper_right + lower_right
