"""Masked tokens (empty slots) are removed before a stage and restored in its assignment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from abbe.errors import BagError
from abbe.types import Assignment, Condensed, TokenBatch, offsets_of


def on_valid(batch: TokenBatch, run: Callable[[TokenBatch], Condensed]) -> Condensed:
    """`run` on the tokens that are not masked; the assignment covers all tokens, and drops the masked ones.

    Raises BagError for a slide whose tokens are all masked. On the meta device all tokens count as valid.
    """
    if batch.mask.is_meta or bool(batch.mask.all()):
        return run(batch)
    rows = batch.mask.nonzero().squeeze(1)
    left = torch.bincount(batch.slide_index[rows].cpu(), minlength=len(batch))
    if not bool(left.all()):
        slide = batch.slide_ids[left.tolist().index(0)]
        raise BagError(f"all tokens of slide {slide!r} are masked; leave empty slides out of the batch")
    found = run(batch.rows(rows, offsets_of(left)))
    index = found.assignment.index.new_full((len(batch.features), found.assignment.index.shape[1]), -1)
    weight = found.assignment.weight.new_zeros(index.shape)
    index[rows], weight[rows] = found.assignment.index, found.assignment.weight
    return replace(found, assignment=Assignment(index, weight, batch.offsets))
