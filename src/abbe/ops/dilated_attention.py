"""Dilated attention: each head reads every r-th token of a segment, for several segment lengths and dilations r.

Source: LongNet (Ding et al. 2023), §3. Branches are combined by their log-sum-exp, which equals one softmax in which a
key counts once per branch that contains it. So the backward pass needs only one log-sum-exp per token and head: the
weights of a piece are exp(scores − lse), recomputed piece by piece. No N × N matrix is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abbe.errors import ConfigError, nearest
from abbe.ops.precision import exact_float32

Branch = tuple[int, int]  # (segment length, dilation)
SEGMENTS = ("cover", "paper")
_SCORES = 2 * 2**20  # scores computed at once on a CPU: 8 MB in float32, about the size of a cache


def branches_of(length: int, *, segments: str = "cover", piece: int = 1024, levels: int = 5) -> list[Branch]:
    """The branches for a sequence of `length` tokens: segments of piece·2^i tokens with dilation 2^i, i < levels.

    "paper": these alone. Segments are nested, so rows from piece·2^(levels−1) on never reach the first token.
    "cover": one more branch over the whole sequence, with dilation ceil(length / piece), so that pieces are at most
    `piece` long. Raises ConfigError for another name.
    """
    if segments not in SEGMENTS:
        raise ConfigError(
            f"segments must be one of {', '.join(SEGMENTS)}, got {segments!r}. {nearest(segments, SEGMENTS)}"
        )
    found = [(piece * 2**i, 2**i) for i in range(levels)]
    return found if segments == "paper" else [*found, (length, math.ceil(length / piece))]


def dilated_attention(
    q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, offsets: Tensor, branches: Sequence[Sequence[Branch]]
) -> tuple[Tensor, Tensor]:
    """(output [T, H, C], log-sum-exp [T, H]) of packed sequences, with exact gradients through both.

    q, k, v: [T, H, C].  offsets: [B+1] on the CPU.  branches: for each of the B sequences, (segment, dilation r) pairs.
    Within a segment, head h reads rows h mod r, h mod r + r, …; the last segment may be shorter. Where no branch of a
    head contains a token, its output is zero and its log-sum-exp −inf. Reference: `abbe.ops.naive.dilated_attention`.
    """
    with exact_float32(q_THC.device.type):
        output, lse = _Dilated.apply(q_THC, k_THC, v_THC, tuple(offsets.tolist()), branches)
    return output, lse


class _Dilated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: tuple[int, ...], branches: Sequence[Sequence[Branch]]
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(q.dtype, torch.float32)
        output = torch.zeros(v.shape, dtype=exact, device=v.device)
        lse = torch.full(q.shape[:2], -torch.inf, dtype=exact, device=q.device)
        for at in _pieces(offsets, branches, q):
            weights = _scores(q[at], k[at], exact)
            highest = weights.amax(-1, keepdim=True)
            total = weights.sub_(highest).exp_().sum(-1, keepdim=True)
            if v.dtype == torch.float16:  # divide first: a sum of `piece` rows could overflow
                part = (weights.div_(total).to(v.dtype) @ v[at].transpose(0, 1)).to(exact)
            else:
                part = (weights.to(v.dtype) @ v[at].transpose(0, 1)).to(exact) / total
            new = (highest + total.log())[..., 0]
            both = torch.logaddexp(lse[at], new.T)
            keep, add = (lse[at] - both).exp(), (new.T - both).exp()
            output[at] = output[at] * keep[..., None] + part.transpose(0, 1) * add[..., None]
            lse[at] = both
        ctx.save_for_backward(q, k, v, output, lse)
        ctx.layout = offsets, branches
        return output.to(v.dtype), lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse = ctx.saved_tensors
        offsets, branches = ctx.layout
        exact = output.dtype
        grad_output = grad_output.to(exact)
        # ∂L/∂scores = weights · (grad_output · v − δ), δ = grad_output · output − grad_lse.
        delta = (grad_output * output).sum(-1) - grad_lse.to(exact)
        gq, gk, gv = (torch.zeros(x.shape, dtype=exact, device=x.device) for x in (q, k, v))
        scale = q.shape[-1] ** -0.5
        for at in _pieces(offsets, branches, q):
            g = grad_output[at].transpose(0, 1)
            weights = _scores(q[at], k[at], exact).sub_(lse[at].T[..., None]).exp_()
            gv[at] += (weights.mT @ g).transpose(0, 1)
            scores = (g @ v[at].transpose(0, 1).to(exact).mT).sub_(delta[at].T[..., None]).mul_(weights)
            gq[at] += (scores @ k[at].transpose(0, 1).to(exact)).transpose(0, 1) * scale
            gk[at] += (scores.mT @ q[at].transpose(0, 1).to(exact)).transpose(0, 1) * scale
        return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), None, None


def _scores(q_LHC: Tensor, k_LHC: Tensor, exact: torch.dtype) -> Tensor:
    """[H, L, L] scaled scores. The queries are scaled, which is cheaper than scaling the scores."""
    scaled = q_LHC.transpose(0, 1) * q_LHC.shape[-1] ** -0.5
    return (scaled @ k_LHC.permute(1, 2, 0)).to(exact)


def _pieces(offsets: tuple[int, ...], branches: Sequence[Sequence[Branch]], q: Tensor) -> Iterator[tuple[slice, slice]]:
    """(rows, heads) of every piece, as strided slices, so that pieces are read and written without index tensors."""
    heads = q.shape[1]
    for (first, end), pairs in zip(pairwise(offsets), branches, strict=True):
        for segment, dilation in pairs:
            for start in range(first, end, segment):
                stop = min(start + segment, end)
                for offset in range(min(dilation, heads, stop - start)):
                    length = math.ceil((stop - start - offset) / dilation)
                    rows = slice(start + offset, stop, dilation)
                    for group in _groups(offset, heads, dilation, length, on_cpu=q.device.type == "cpu"):
                        yield rows, group


def _groups(offset: int, heads: int, dilation: int, length: int, *, on_cpu: bool) -> Iterator[slice]:
    """The heads of one offset; on a CPU a few at a time, so that their scores fit into the cache."""
    count = math.ceil((heads - offset) / dilation)
    at_once = max(1, _SCORES // length**2) if on_cpu else count
    for first in range(0, count, at_once):
        start = offset + first * dilation
        yield slice(start, min(start + at_once * dilation, heads), dilation)
