"""What every stage returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from abbe.types.assignment import Assignment
from abbe.types.batch import TokenBatch
from abbe.types.packed import require
from abbe.types.show import html_table

_SHOWN = 20  # slides listed in a notebook


@dataclass(frozen=True, eq=False)
class Condensed:
    """What every stage returns, in training and in evaluation.

    tokens: the new tokens.  assignment: the token of each patch of the stage's input.
    dropped: [B] int64 on the CPU, number of input tokens (patches, for the first stage) that reached no token; masked
    tokens are not counted.
    summary: [B, D] or None; a slide-level vector such as `[CLS]`, not a token.
    losses: weighted scalars, to be added to the task's loss.  metrics: raw values to log.
    predictions: auxiliary outputs that the model's own heads supervise.

    Raises InputError naming the field whose shape, type or number of slides does not fit.
    """

    tokens: TokenBatch
    assignment: Assignment
    dropped: Tensor
    summary: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        b = len(self.tokens)
        require(len(self.assignment) == b, f"assignment must have {b} slides", self.assignment.offsets)
        right = self.dropped.shape == (b,) and self.dropped.dtype == torch.int64 and self.dropped.device.type == "cpu"
        require(right, f"dropped must be int64 [{b}] on the CPU", self.dropped)
        if self.summary is not None:
            require(self.summary.ndim == 2 and len(self.summary) == b, f"summary must be [{b}, D]", self.summary)
        for name, loss in self.losses.items():
            require(loss.ndim == 0, f"losses[{name!r}] must be a scalar", loss)
        if self.assignment.index.device.type == "cpu" and len(self.assignment.index):
            slide = torch.repeat_interleave(torch.arange(b), self.assignment.offsets.diff())
            within = self.assignment.index < self.tokens.lengths[slide, None]
            require(bool(within.all()), "assignment names a token that its slide does not have", self.assignment.index)

    def __repr__(self) -> str:
        tokens, dropped = self.tokens, int(self.dropped.sum())
        return f"Condensed({len(tokens)} slides, {len(tokens.features)} tokens × {tokens.width}, {dropped} dropped)"

    def _repr_html_(self) -> str:
        columns = (self.tokens.slide_ids, self.assignment.offsets.diff().tolist(), self.tokens.lengths.tolist())
        rows = list(zip(*columns, self.dropped.tolist(), strict=True))
        caption = repr(self) if len(rows) <= _SHOWN else f"{self!r}, the first {_SHOWN} slides"
        return html_table(caption, rows[:_SHOWN], ("slide", "input", "tokens", "dropped"))
