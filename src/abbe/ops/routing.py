"""Top-k routing of packed tokens into slots, and the weighted mean of each slot's tokens (the core of TC-SSA).

A dense implementation keeps several [T, K] tensors for its backward pass. Here both passes process chunks of tokens:
forward keeps sums and the chosen slots, backward recomputes a chunk's logits and probabilities. So what is saved does
not depend on K, and a chunk of tokens is still in the cache when it is used a second time.

Derivation of the backward. With a_j the amounts, P = softmax(z), P~ = P cut to the chosen slots, per slide
    m_k = Σ_j a_j P~_jk,  c_k = Σ_j a_j P~_jk x_j / (m_k + eps),  s_k = Σ_j a_j P_jk / n,  L = Σ_j a_j lse(y_j) / n
(y: logits without noise, n = Σ a). Given ∂c, ∂m, ∂s, ∂L:
    u_k = ∂c_k / (m_k + eps),   v_k = ∂m_k − u_k · c_k                        through the quotient
    g_jk = chosen_jk (x_j · u_k + v_k) + ∂s_k / n                             gradient of a_j P_jk
    ∂z_j = a_j P_j ⊙ (g_j − Σ_k P_jk g_jk),   ∂y_j = ∂z_j + a_j ∂L softmax(y_j) / n
    ∂x_j = Σ_k a_j P~_jk u_k + Wᵀ ∂y_j,   ∂W = Σ_j ∂y_j x_jᵀ
    ∂a_j = Σ_k P_jk g_jk + (∂L (lse(y_j) − L) − Σ_k ∂s_k s_k) / n
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Rows per chunk. CPU: 1,504 rows of 1,024 float32 numbers take 6 MB and stay in the cache; more rows gain nothing, and
# fewer make torch's operations too short for two threads. It is a multiple of 16, the block size of torch's generator,
# so that noise drawn in chunks equals one draw, except for a last block of fewer than 16 numbers. GPU: large enough to
# hide launches.
CHUNK, CHUNK_GPU = 1504, 65_536
FINISH = 16_384  # rows per step of `_Sums.finish`


@dataclass(frozen=True, eq=False)
class Routed:
    """The result of `routed_mean`. Shapes as in `abbe.types`; R = min(top_k, K).

    centres: [B, K, D], zero for a slot without tokens.   mass: [B, K], Σ of routed weights.
    taken: [B, K] bool, False for a slot without tokens.
    index: [T, R] int32, slots of each token, −1 for a masked one.   weight: [T, R], their P~, without gradient.
    share: [B, K], mean over a slide's tokens of P, before the top-k cut.   chosen: [B, K], mean of membership, Σ = R.
    log_normalizer: [B], mean over a slide's tokens of the logsumexp of the logits before noise.
    """

    centres: Tensor
    mass: Tensor
    taken: Tensor
    index: Tensor
    weight: Tensor
    share: Tensor
    chosen: Tensor
    log_normalizer: Tensor


def routed_mean(
    x_TD: Tensor, logits_TK: Tensor, offsets: Tensor, *, amount_T: Tensor, top_k: int = 2, eps: float = 1e-9
) -> Routed:
    """Means over slots of the tokens that chose them, for each slide.

    x_TD: [T, D] tokens.  logits_TK: [T, K] float32 (float64 for checks).  offsets: [B+1] on the CPU.
    amount_T: [T] ≥ 0, how much each token counts (1 for a patch, 0 for a masked one).

    P = softmax(logits); P~ keeps the top_k of each token, *not* renormalised;
    centre_k = Σ_j a_j P~_jk x_j / (Σ_j a_j P~_jk + eps). Statistics are means over tokens weighted by a_j.
    Source: TC-SSA §2.2 eq. 1. Reference: `abbe.ops.naive.routed_mean`.
    """
    return Routed(*_RoutedMean.apply(x_TD, logits_TK, None, None, amount_T, offsets, top_k, 0.0, eps))


def gated_mean(
    x_TD: Tensor,
    gate_KD: Tensor,
    bias_K: Tensor | None,
    offsets: Tensor,
    *,
    amount_T: Tensor,
    top_k: int = 2,
    noise: float = 0.0,
    eps: float = 1e-9,
) -> Routed:
    """`routed_mean` of the logits x Wᵀ + b (+ noise · N(0, 1)), computed in chunks.

    gate_KD: [K, D] and bias_K: [K] in float32; logits are float32 for tokens of any dtype.
    Noise comes from torch's default generator; backward draws the same numbers again from its saved state.
    """
    return Routed(*_RoutedMean.apply(x_TD, None, gate_KD, bias_K, amount_T, offsets, top_k, noise, eps))


class _RoutedMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        logits: Tensor | None,
        gate: Tensor | None,
        bias: Tensor | None,
        amount: Tensor,
        offsets: Tensor,
        top_k: int,
        noise: float,
        eps: float,
    ) -> tuple[Tensor, ...]:
        k = logits.shape[1] if gate is None else len(gate)  # type: ignore[union-attr]
        sums = _Sums(len(offsets) - 1, k, min(top_k, k), x, (logits if gate is None else gate).dtype)  # type: ignore[union-attr]
        state = _generator_state(x.device) if noise else None
        for rows, slides in _chunks(offsets, x.device):
            x_c, clean = _logits(x, logits, gate, bias, rows)
            sums.add(x_c, clean, _noised(clean, noise, None), amount[rows], rows, slides)
            del x_c  # free it before the next chunk: for bfloat16 tokens it is a copy
        sums.finish(amount, offsets)
        dtype, n64 = sums.weight.dtype, sums.total.clamp_min(eps)
        n, mass, taken = n64.to(dtype), sums.mass.to(dtype), sums.chosen > 0
        centres = sums.centres.div_((sums.mass + eps).to(dtype)[:, :, None])
        share, chosen = (sums.share / n64[:, None]).to(dtype), (sums.chosen / n64[:, None]).to(dtype)
        normalizer = (sums.normalizer / n64).to(dtype)
        ctx.save_for_backward(x, logits, gate, bias, amount, sums.index, centres, mass, share, normalizer, n)
        ctx.offsets, ctx.noise, ctx.eps, ctx.state = offsets, noise, eps, state
        ctx.set_materialize_grads(False)  # zeros for index and weight would take more memory than all of backward
        ctx.mark_non_differentiable(taken, sums.index, sums.weight, chosen)
        return centres, mass, taken, sums.index, sums.weight, share, chosen, normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, logits, gate, bias, amount, index, centres, mass, share, normalizer, n = ctx.saved_tensors
        of = (centres, mass, share, normalizer)
        d_centres, d_mass, d_share, d_normalizer = (
            torch.zeros_like(value) if gradients[at] is None else gradients[at]
            for at, value in zip((0, 1, 5, 7), of, strict=True)
        )
        u = d_centres / (mass + ctx.eps)[:, :, None]
        v = d_mass - (u * centres).sum(2)
        d_share, d_lse = d_share / n[:, None], d_normalizer / n
        constant = d_lse * normalizer + (d_share * share).sum(1)
        need_x, need_logits, need_gate, need_bias, need_amount = ctx.needs_input_grad[:5]
        d_x = torch.empty_like(x) if need_x else None
        d_logits = torch.empty_like(logits) if need_logits else None
        d_gate = torch.zeros_like(gate) if need_gate else None
        d_bias = torch.zeros_like(bias) if need_bias else None
        d_amount = torch.empty_like(amount) if need_amount else None
        generator = _generator(x.device, ctx.state) if ctx.noise else None
        for rows, slides in _chunks(ctx.offsets, x.device):
            x_c, clean = _logits(x, logits, gate, bias, rows)
            y = clean.softmax(1) if ctx.noise else None
            lse = clean.logsumexp(1)
            p = _noised(clean, ctx.noise, generator).softmax(1)
            a = amount[rows].to(p.dtype)[:, None]
            slots = index[rows].long()
            # Tokens of amount 0 have slot −1. Their slots matter only for the gradient with respect to the amount.
            slots = torch.where(slots < 0, _largest_(p.clone(), slots.shape[1])[1], slots) if need_amount else slots
            member = torch.zeros_like(p).scatter_(1, slots.clamp_min_(0), 1.0)
            g = torch.empty_like(p)
            for s, at in slides:
                part = slice(at.start - rows.start, at.stop - rows.start)
                g[part] = (x_c[part] @ u[s].T).add_(v[s]).mul_(member[part]).add_(d_share[s])
            inner = (p * g).sum(1, keepdim=True)
            slide = _slide_of(slides, x.device)
            if d_amount is not None:
                d_amount[rows] = inner.squeeze(1) + d_lse[slide] * lse - constant[slide]
            d_z = g.sub_(inner).mul_(p).mul_(a)
            d_z += (a.squeeze(1) * d_lse[slide])[:, None] * (p if y is None else y)
            if d_logits is not None:
                d_logits[rows] = d_z
            if d_gate is not None:
                d_gate.addmm_(d_z.T, x_c)
            if d_bias is not None:
                d_bias += d_z.sum(0)
            if d_x is not None:
                routed = p.mul_(member).mul_(a)
                for s, at in slides:
                    part = slice(at.start - rows.start, at.stop - rows.start)
                    back = routed[part] @ u[s]
                    d_x[at] = back if gate is None else back.addmm_(d_z[part], gate)
            del x_c
        return d_x, d_logits, d_gate, d_bias, d_amount, None, None, None, None


class _Sums:
    """Accumulates over chunks: sums over each slide's tokens, and every token's slots and weights.

    Sums within a chunk are in the logits' dtype. Sums over chunks, except centres, are in float64, so that precision
    does not fall with N.
    """

    def __init__(self, b: int, k: int, r: int, x: Tensor, dtype: torch.dtype) -> None:
        def zeros(*shape: int, exact: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(*shape, dtype=exact, device=x.device)

        self.centres = zeros(b, k, x.shape[1], exact=dtype)
        self.mass, self.share, self.chosen = zeros(b, k), zeros(b, k), zeros(b, k)
        self.total, self.normalizer = zeros(b), zeros(b)
        self.index = torch.empty(len(x), r, dtype=torch.int32, device=x.device)
        self.weight = torch.empty(len(x), r, dtype=dtype, device=x.device)

    def add(
        self, x_c: Tensor, clean: Tensor, z: Tensor, amount: Tensor, rows: slice, slides: list[tuple[int, slice]]
    ) -> None:
        """Add a chunk: its tokens, logits without and with noise, amounts, rows, and the slides in it."""
        k, r, a = z.shape[1], self.index.shape[1], amount.to(z.dtype)
        p = z.softmax(1)
        parts = [(s, slice(at.start - rows.start, at.stop - rows.start)) for s, at in slides]
        first, last = slides[0][0], slides[-1][0]
        alone = first == last  # the common case, without slicing
        for s, part in parts:
            self.share[s] += a @ p if alone else a[part] @ p[part]
        top, slots = _largest_(p, r)
        # lse = max z − ln max P, which saves a pass over the logits.
        lse = (z.gather(1, slots[:, :1]) - top[:, :1].log()).squeeze(1) if z is clean else clean.logsumexp(1)
        for s, part in parts:
            self.normalizer[s] += a.dot(lse) if alone else a[part].dot(lse[part])
        self.index[rows], self.weight[rows] = slots, top
        # Each token goes to r of K slots, so a dense product would mostly multiply zeros. Instead, routes are sorted by
        # (slide, slot), and the rows of each slot are summed while the chunk is in the cache.
        bags = (last - first + 1) * k
        key = slots if alone else slots + (_slide_of(slides, z.device) - first)[:, None] * k
        order, starts = _grouped(key.flatten(), bags)
        routed = (top * a[:, None]).flatten().gather(0, order)
        token = order.div_(r, rounding_mode="floor")
        summed = F.embedding_bag(token, x_c, starts, mode="sum", per_sample_weights=routed)
        self.centres[first : last + 1] += summed.view(-1, k, x_c.shape[1])

    def finish(self, amount: Tensor, offsets: Tensor) -> None:
        """Sum over all routes, then remove the routes of tokens of amount 0."""
        k, t, device = self.mass.shape[1], len(amount), amount.device
        for start in range(0, t, FINISH):
            part = slice(start, min(start + FINISH, t))
            a, weight, key = amount[part, None].double(), self.weight[part], self.index[part].long()
            if len(self.total) > 1:
                slide = torch.searchsorted(offsets[1:], torch.arange(part.start, part.stop), right=True).to(device)
                key += slide[:, None] * k
                self.total.index_add_(0, slide, a.squeeze(1))
            else:
                self.total += a.sum()
            key = key.flatten()
            for total, value in ((self.mass, weight * a), (self.chosen, a.expand_as(weight))):
                if key.is_cpu:  # bincount is several times faster
                    total.view(-1).add_(torch.bincount(key, value.flatten(), minlength=total.numel()))
                else:
                    total.view(-1).index_add_(0, key, value.flatten())
        ignored = (amount <= 0)[:, None]
        self.index.masked_fill_(ignored, -1)
        self.weight.masked_fill_(ignored, 0.0)


def _slide_of(slides: list[tuple[int, slice]], device: torch.device) -> Tensor:
    return torch.cat([torch.full((at.stop - at.start,), s) for s, at in slides]).to(device)


def _chunks(offsets: Tensor, device: torch.device) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
    """(rows of a chunk, [(slide, its rows in the chunk)]) for all chunks, in order."""
    step = CHUNK if device.type == "cpu" else CHUNK_GPU
    bounds, s = offsets.tolist(), 0
    for start in range(0, bounds[-1], step):
        stop = min(start + step, bounds[-1])
        parts = []
        while s < len(bounds) - 1 and bounds[s] < stop:
            here = slice(max(bounds[s], start), min(bounds[s + 1], stop))
            if here.stop > here.start:
                parts.append((s, here))
            if bounds[s + 1] > stop:
                break
            s += 1
        yield slice(start, stop), parts


def _logits(
    x: Tensor, logits: Tensor | None, gate: Tensor | None, bias: Tensor | None, rows: slice
) -> tuple[Tensor, Tensor]:
    """(tokens of the chunk in the logits' type, their logits)."""
    if logits is not None:
        return x[rows].to(logits.dtype), logits[rows]
    assert gate is not None
    x_c = x[rows].to(gate.dtype)
    return x_c, x_c @ gate.T if bias is None else torch.addmm(bias, x_c, gate.T)


def _largest_(p: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """(the r largest values of each row [n, r], their columns [n, r] int64). Overwrites p."""
    if r > 2:
        return p.topk(r, dim=1)
    # One or two passes for the largest are several times faster than topk.
    highest, slot = p.max(1, keepdim=True)
    if r == 1:
        return highest, slot
    second, other = p.scatter_(1, slot, -1.0).max(1, keepdim=True)
    return torch.cat([highest, second], 1), torch.cat([slot, other], 1)


def _grouped(key: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """(order that sorts key, stable; where each group begins [groups]).  key: int64 in [0, groups)."""
    if key.is_cpu and groups <= 2**15:
        # numpy uses radix sort for two-byte integers, eight times faster.
        small = key.to(torch.int16).numpy()
        many = np.bincount(small, minlength=groups)
        return torch.from_numpy(small.argsort(kind="stable")), torch.from_numpy(many.cumsum() - many)
    key, order = key.sort(stable=True)
    return order, torch.searchsorted(key, torch.arange(groups, device=key.device))


def _noised(clean: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    if not noise:
        return clean
    return torch.randn(clean.shape, dtype=clean.dtype, device=clean.device, generator=generator).mul_(noise).add_(clean)


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _generator(device: torch.device, state: Tensor) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator
