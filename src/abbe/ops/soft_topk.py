"""Soft Top-K: weights α = sigmoid(u − t) in [0, 1] whose sum over each slide is its budget K.

Source: "Learnable Token Sparsification for Efficient Gigapixel Whole Slide Image Reasoning", §3.2, eq. 4. The sum is
strictly decreasing in t, so t is found by bisection in float64: no sort, O(N) per step. Differentiating
Σ sigmoid(u − t) = K gives the exact gradient ∂t/∂u_i = d_i / Σd, d = α (1 − α).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abbe.errors import InputError
from abbe.ops.segments import segment_sum

_HALVINGS = 64  # shrink a bracket of 10^3 below the spacing of float64
_OPEN = 2000.0  # sigmoid(2000) is exactly 1 and exp(−2000 / 2) exactly 0, in float32 and float64


def soft_topk(u: Tensor, budgets: Sequence[float] | Tensor, offsets: Tensor) -> Tensor:
    """The threshold t of each slide, [B] in u's type; the weights are `sigmoid(u − t[slide])`.

    u: [T] scores over temperature, finite.  budgets: [B] K > 0, may be fractional.  offsets: [B+1] on the CPU.
    For K ≥ N, t is so low that all weights are exactly 1. Where all weights are saturated the gradient is zero, but t
    stays in the graph. Raises InputError for a budget that is not positive and for a slide without tokens.
    Reference: `abbe.ops.naive.soft_topk`.
    """
    lengths = offsets.diff()
    wanted = torch.as_tensor(budgets, dtype=torch.float64)
    if wanted.shape != lengths.shape or not bool((wanted > 0).all()):
        raise InputError(f"soft_topk: {len(lengths)} positive budgets are needed, got {wanted.tolist()}")
    if not bool((lengths > 0).all()):
        raise InputError(f"soft_topk: every slide needs at least one token, lengths are {lengths.tolist()}")
    slide = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(u.device)
    t: Tensor = _Threshold.apply(u, wanted.to(u.device), lengths.to(u.device), slide)
    return t


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, budgets: Tensor, lengths: Tensor, slide: Tensor) -> Tensor:
        t = _solve(u.double(), budgets, lengths, slide).to(u.dtype)
        ctx.save_for_backward(u, t, slide)
        return t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        u, t, slide = ctx.saved_tensors
        above = u.double() - t.double()[slide]
        d = above.sigmoid() * (-above).sigmoid()
        total = segment_sum(d, slide, len(t))
        share = torch.where(total > 1e-12, grad.double() / total.clamp_min(1e-12), 0.0)
        return (share[slide] * d).to(u.dtype), None, None, None


def _solve(u: Tensor, budgets: Tensor, lengths: Tensor, slide: Tensor) -> Tensor:
    """[B] float64: t with Σ sigmoid(u − t) = K, by bisection of a bracket that always contains it."""
    b = len(lengths)
    low = u.new_full((b,), torch.inf).scatter_reduce(0, slide, u, "amin")
    high = u.new_full((b,), -torch.inf).scatter_reduce(0, slide, u, "amax")
    everything = budgets >= lengths
    # If all scores were c, t would be c − logit(K/N); so t lies between the values for the min and the max score.
    shift = torch.logit(torch.where(everything, 0.5, budgets / lengths))
    least, low, high = low, low - shift, high - shift
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_many = segment_sum((u - middle[slide]).sigmoid(), slide, b) > budgets
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return torch.where(everything, least - _OPEN, (low + high) / 2)


def hard_topk(scores: Tensor, budgets: Sequence[int], offsets: Tensor) -> list[Tensor]:
    """Rows of the K best tokens of each slide, within the slide and in slide order. Ties go to the first row.

    scores: [T].  budgets: [B] K ≥ 1; a slide with K tokens or fewer keeps all.
    """
    slides = scores.detach().split(offsets.diff().tolist())
    return [s.argsort(descending=True, stable=True)[:k].sort().values for s, k in zip(slides, budgets, strict=True)]
