"""LongNet: pre-norm Transformer blocks with dilated attention over a whole slide, [CLS] first.

Sources: LongNet (Ding et al. 2023) for the attention; SLIM §3.1 and §4 for its use on slides: widths, two-dimensional
rotary positions, segments of 1024·2^i tokens with dilation 2^i. What these leave open is settled in
docs/methods/slim.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from abbe.encoders.base import Between, Encoder
from abbe.encoders.identity import identity_assignment
from abbe.errors import ConfigError, InputError, MissingCoordinates, check_range
from abbe.layers.by_rows import add_by_rows, by_rows
from abbe.layers.masked import on_valid
from abbe.layers.mlp import MLP
from abbe.layers.norm import Norm
from abbe.ops.dilated_attention import Branch, branches_of, dilated_attention
from abbe.ops.rope2d import rope2d, rotations
from abbe.types import Condensed, TokenBatch, offsets_of


class LongNet(Encoder):
    """A linear projection from dim to width, then `layers` blocks. `summary` is [CLS]; tokens keep their positions.

    width, layers, heads, hidden: of the blocks.   theta: base of the rotary frequencies.
    segments: "paper" for the published branches, "cover" to add one over the whole slide; see `branches_of`.
    piece, levels: segments are piece·2^i long, i < levels.
    gradient_checkpointing: recompute blocks in the backward pass instead of storing them.
    """

    def __init__(
        self,
        *,
        dim: int,
        width: int = 768,
        layers: int = 6,
        heads: int = 16,
        hidden: int = 3072,
        theta: float = 100.0,
        segments: str = "cover",
        piece: int = 1024,
        levels: int = 5,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(dim=dim)
        if layers < 1 or heads < 1 or width % (4 * heads):
            raise ConfigError(
                f"{self.name}: width must be a multiple of 4 · heads and layers at least 1, "
                f"got width={width}, heads={heads}, layers={layers}"
            )
        check_range(self.name, 1, hidden=hidden, piece=piece)
        check_range(self.name, 1, below=64 - piece.bit_length(), levels=levels)  # piece · 2^levels is an int64
        if not 0 < theta < math.inf:
            raise ConfigError(f"{self.name}: theta must be above 0, got {theta}")
        branches_of(1, segments=segments)  # raises for an unknown name
        self.width, self.segments, self.piece, self.levels, self.theta = width, segments, piece, levels, theta
        self.head_width, self.gradient_checkpointing = width // heads, gradient_checkpointing
        self.project = nn.Linear(dim, width)
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = Norm(width)

    def forward(self, batch: TokenBatch, *, between: Between | None = None) -> Condensed:
        """Encode every slide; `between(l, tokens)` is called after each block l = 1, 2, … except the last.

        It gets the hidden patch tokens without [CLS] and returns a Condensed of them, or None. The following blocks do
        not see what it drops. Assignments are composed, and its losses, metrics and predictions are part of the result.
        Masked tokens are neither read nor returned. Raises BagError, and MissingCoordinates if positions are missing in
        the batch or in what `between` returns.
        """
        self._check(batch)
        if batch.positions is None:
            raise MissingCoordinates(f"{self.name} needs positions, and a bag of this batch has no coordinates")
        return on_valid(batch, lambda valid: self._encode(valid, between))

    def _encode(self, batch: TokenBatch, between: Between | None) -> Condensed:
        assert batch.positions is not None
        tokens = replace(batch, features=by_rows(self.project, batch.features.to(self.cls.dtype)).to(self.cls.dtype))
        corner = _corner(batch.positions, batch.offsets)
        x, offsets, tokens = _with_cls(self.cls.expand(len(batch), -1), tokens)
        done = Condensed(batch, identity_assignment(batch), torch.zeros(len(batch), dtype=torch.int64))
        for number, block in enumerate(self.blocks, start=1):
            x = self._run(block, x, offsets, tokens, corner)
            if between is None or number == len(self.blocks):
                continue
            cls, tokens = _without_cls(x, offsets, tokens)
            if (step := between(number, tokens)) is not None:
                tokens = self._checked(step, tokens.lengths)
                done = _joined(done, step, number)
            x, offsets, tokens = _with_cls(cls, tokens)
        cls, tokens = _without_cls(by_rows(self.norm, x), offsets, tokens)
        dtype = batch.features.dtype
        return replace(done, tokens=replace(tokens, features=tokens.features.to(dtype)), summary=cls.to(dtype))

    def _run(self, block: nn.Module, x: Tensor, offsets: Tensor, tokens: TokenBatch, corner: Tensor) -> Tensor:
        assert tokens.positions is not None
        # Positions are relative to the corner of the slide's tissue, where [CLS] is: shifting a slide changes nothing.
        positions = [
            torch.cat([here.new_zeros(1, 2), here - corner[b]])
            for b, here in enumerate(tokens.positions.split(tokens.lengths.tolist()))
        ]
        cos, sin = rotations(torch.cat(positions), self.head_width, theta=self.theta)
        branches = [
            branches_of(n, segments=self.segments, piece=self.piece, levels=self.levels)
            for n in offsets.diff().tolist()
        ]
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, cos, sin, offsets, branches, use_reentrant=False)
        out: Tensor = block(x, cos, sin, offsets, branches)
        return out

    def _checked(self, step: Condensed, before: Tensor) -> TokenBatch:
        tokens = step.tokens
        if tokens.positions is None:
            raise MissingCoordinates(
                f"{self.name}: the method between blocks must keep positions; use one that selects patches"
            )
        if tokens.width != self.width:
            raise InputError(f"{self.name}: tokens between blocks are {self.width} wide, got {tokens.width}")
        # If `between` only selects, kept = before − dropped.
        if not torch.equal(before - step.dropped, tokens.lengths):
            raise InputError(
                f"{self.name}: the method between blocks must select patches, but of {before.tolist()} tokens it "
                f"dropped {step.dropped.tolist()} and returned {tokens.lengths.tolist()}"
            )
        return tokens


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), on packed rows [S, width]."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = MLP(width, hidden)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, offsets: Tensor, branches: Sequence[Sequence[Branch]]
    ) -> Tensor:
        q, k, v = by_rows(self._rotated, x, cos, sin).unbind(1)
        seen, _ = dilated_attention(q, k, v, offsets, branches)
        del q, k, v  # frees three times the memory of x
        x = add_by_rows(x, self.out, seen.flatten(1))
        return add_by_rows(x, lambda rows: self.mlp(self.norm2(rows)), x)

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[S, 3, H, C]: queries and keys rotated by their positions, and values."""
        q, k, v = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, self.head_width).unbind(1)
        return torch.stack([rope2d(q, cos, sin), rope2d(k, cos, sin), v], 1)


def _corner(positions: Tensor, offsets: Tensor) -> Tensor:
    """[B, 2]: the smallest x and the smallest y of each slide's patches."""
    return torch.stack([positions[start:stop].amin(0) for start, stop in pairwise(offsets.tolist())])


def _with_cls(cls_BD: Tensor, tokens: TokenBatch) -> tuple[Tensor, Tensor, TokenBatch]:
    """(rows [T + B, D] with [CLS] before each slide's tokens, their offsets, the tokens without features)."""
    slides = tokens.features.split(tokens.lengths.tolist())
    rows = [part for cls, slide in zip(cls_BD, slides, strict=True) for part in (cls[None].to(slide.dtype), slide)]
    bare = replace(tokens, features=tokens.features.new_empty(len(tokens.features), 0))
    return torch.cat(rows), offsets_of(tokens.lengths + 1), bare


def _without_cls(x: Tensor, offsets: Tensor, tokens: TokenBatch) -> tuple[Tensor, TokenBatch]:
    """([CLS] of each slide [B, D], the tokens with the other rows of x as features)."""
    bounds = offsets.tolist()
    slides = [x[start + 1 : stop] for start, stop in pairwise(bounds)]
    features = slides[0] if len(slides) == 1 else torch.cat(slides)
    return x[offsets[:-1].to(x.device)], replace(tokens, features=features)


def _joined(done: Condensed, step: Condensed, number: int) -> Condensed:
    """Two stages as one: assignments are composed; a name already in use gets the block's number as a suffix."""

    def both(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**first, **{f"{name}/{number}" if name in first else name: value for name, value in second.items()}}

    return Condensed(
        step.tokens,
        done.assignment.then(step.assignment),
        done.dropped + step.dropped,
        losses=both(done.losses, step.losses),
        metrics=both(done.metrics, step.metrics),
        predictions=both(done.predictions, step.predictions),
    )
