"""SLIM: a LongNet that drops patches between its blocks, chosen by learned queries (Cropr).

Source: "Scalable Whole-Slide Vision-Language Modeling with Learned Token Pruning", §3. What it leaves open is settled
in docs/methods/slim.md.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from abbe.condensers.base import Budget, Condenser, select
from abbe.encoders.longnet import LongNet
from abbe.errors import ConfigError, check_range
from abbe.layers.mlp import MLP
from abbe.layers.norm import Norm
from abbe.ops.soft_topk import hard_topk
from abbe.types import Condensed, TokenBatch


class Slim(Condenser):
    """Slide encoder and selection in one: tokens are the encoded patches that were kept, `summary` is [CLS].

    tokens: keep rate ρ of the whole network, or a count.
    embed, layers, heads, hidden, theta, segments, piece, levels, gradient_checkpointing: of the LongNet.
    queries: learnable queries of each Cropr module.

    predictions["cropr/l"]: [B, embed], what the queries after block l = 1 … layers − 1 read from a slide. The model
    gives each a head of its own; their gradient does not reach the blocks.
    """

    references = (
        "Scalable Whole-Slide Vision-Language Modeling with Learned Token Pruning (2025)",
        "Token Cropr: Faster ViTs for Quite a Few Tasks (CVPR 2025)",
        "LongNet: Scaling Transformers to 1,000,000,000 Tokens (2023)",
    )
    small = {"tokens": 4, "embed": 16, "layers": 3, "heads": 2, "hidden": 16, "piece": 8, "levels": 2}
    grid = {"tokens": [1.0, 0.5, 0.4, 0.3, 0.2, 0.1]}
    selects = True
    order_dependent = True  # dilated attention reads rows by their index
    changes_features = True
    trainable = True
    needs_positions = True
    summarises = True

    def __init__(
        self,
        *,
        dim: int,
        tokens: int | float = 0.2,
        embed: int = 768,
        layers: int = 6,
        heads: int = 16,
        hidden: int = 3072,
        theta: float = 100.0,
        segments: str = "cover",
        piece: int = 1024,
        levels: int = 5,
        queries: int = 1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(dim=dim, tokens=tokens)
        if layers < 2:
            raise ConfigError(f"slim: layers must be at least 2, got {layers}; patches are dropped between layers")
        check_range("slim", 1, queries=queries, heads=heads, embed=embed, hidden=hidden)
        if embed % (4 * heads):
            raise ConfigError(f"slim: embed must be a multiple of 4 · heads, got embed={embed}, heads={heads}")
        self.encoder = LongNet(
            dim=dim,
            width=embed,
            layers=layers,
            heads=heads,
            hidden=hidden,
            theta=theta,
            segments=segments,
            piece=piece,
            levels=levels,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.croppers = nn.ModuleList(Cropr(embed, queries) for _ in range(layers - 1))

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def prediction_names(self) -> tuple[str, ...]:
        return tuple(f"cropr/{number}" for number in range(1, len(self.croppers) + 1))

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool, predictions: bool = False) -> Condensed:
        return self._condense(batch, budgets, soft=soft, predictions=predictions)

    def _condense(self, batch: TokenBatch, tokens: Budget | None, *, soft: bool, predictions: bool) -> Condensed:
        # A keep rate and the count it gives prune by different schedules: take the budget as given.
        schedules = self.schedules(batch.lengths, tokens)

        def between(number: int, tokens: TokenBatch) -> Condensed:
            cropper = self.croppers[number - 1]
            assert isinstance(cropper, Cropr)
            condensed = select(tokens, cropper.keep(tokens, [plan[number - 1] for plan in schedules]))
            if not predictions:
                return condensed
            return replace(condensed, predictions={f"cropr/{number}": cropper.read(tokens)})

        return self.encoder(batch, between=between)

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """Patches left of each slide at the end."""
        return [plan[-1] for plan in self.schedules(lengths, tokens)]

    def schedules(self, lengths: Tensor, tokens: Budget | None) -> list[list[int]]:
        """For each slide, patches left after blocks 1 … layers − 1; see `keep_schedule`."""
        budgets = self.requested(lengths, tokens)
        return [keep_schedule(n, k, len(self.croppers)) for n, k in zip(lengths.tolist(), budgets, strict=True)]


def keep_schedule(n: int, budget: int | float, steps: int) -> list[int]:
    """Patches left after each of `steps` prunings of n patches by the same rate k = ρ^(1/steps) (SLIM §3.2).

    A float is the keep rate ρ: M ← max(1, floor(k·M)), which may end slightly below ρ·n. An int is a count K:
    ρ = min(1, K/n), with M never below min(K, n) and exactly that at the end.
    """
    counted = isinstance(budget, int)
    rate = min(1.0, budget / n) if counted else budget
    least = min(int(budget), n) if counted else 1
    plan, left = [], n
    for _ in range(steps):
        left = max(least, math.floor(rate ** (1 / steps) * left + 1e-9))
        plan.append(left)
    return [*plan[:-1], least] if counted else plan


class Cropr(nn.Module):
    """Learned queries score patches; an auxiliary loss on what they read trains them.

    Scores a = X q̄ with q̄ = Σ Q, without a key projection. In training, the queries read Z = softmax(Q Xᵀ / √D) X,
    refined to Ẑ = Z + MLP(LN(Z)) and averaged over the queries. X is detached: no gradient reaches the blocks.
    """

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.norm = Norm(width)
        self.mlp = MLP(width, 4 * width)

    def keep(self, tokens: TokenBatch, budgets: list[int]) -> list[Tensor]:
        """The K rows of each slide with the best scores, in slide order."""
        return hard_topk(tokens.features.detach() @ self.queries.detach().sum(0), budgets, tokens.offsets)

    def read(self, tokens: TokenBatch) -> Tensor:
        """What the queries read from each slide, [B, width]."""
        x, lengths = tokens.features.detach(), tokens.lengths.tolist()
        attention = (x @ self.queries.T / x.shape[1] ** 0.5).split(lengths)
        slides = zip(attention, x.split(lengths), strict=True)
        z_BQD = torch.stack([weights.softmax(0).T @ rows for weights, rows in slides])
        return (z_BQD + self.mlp(self.norm(z_BQD))).mean(1)
