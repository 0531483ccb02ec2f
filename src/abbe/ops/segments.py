"""Sums and softmaxes over the slides of a packed batch."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def segment_sum(values: Tensor, slide_index: Tensor, slides: int) -> Tensor:
    """Σ over each slide's tokens: [T] or [T, D] with slide_index [T] to [B] or [B, D]."""
    out = values.new_zeros(slides, *values.shape[1:])
    return out.index_add(0, slide_index, values)


def segment_mean(values: Tensor, amount: Tensor, slide_index: Tensor, slides: int) -> Tensor:
    """Mean over each slide's tokens weighted by amount [T]: [T] or [T, D] to [B] or [B, D]. Zero for Σ amount = 0."""
    scaled = values * (amount if values.ndim == 1 else amount[:, None])
    total = segment_sum(amount, slide_index, slides).clamp_min(1e-9)
    return segment_sum(scaled, slide_index, slides) / (total if values.ndim == 1 else total[:, None])


def segment_weighted_sum(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Σ weight_t · row_t over each slide's tokens: rows [T, D], weight [T], offsets [B+1] on the CPU, to [B, D].

    One matrix–vector product per slide, so no temporary of the size of `rows` is needed.
    """
    bounds = offsets.tolist()
    return torch.stack([weight[start:stop] @ rows[start:stop] for start, stop in pairwise(bounds)])


def segment_softmax(logits: Tensor, slide_index: Tensor, slides: int) -> Tensor:
    """Softmax over each slide's tokens: [T] to [T]. A slide whose logits are all −inf gets zeros."""
    highest = logits.new_full((slides,), -torch.inf).scatter_reduce(0, slide_index, logits.detach(), "amax")
    highest = torch.where(highest.isfinite(), highest, 0.0)
    weight = (logits - highest[slide_index]).exp()
    total = segment_sum(weight, slide_index, slides)
    return weight / total.clamp_min(torch.finfo(weight.dtype).tiny)[slide_index]
