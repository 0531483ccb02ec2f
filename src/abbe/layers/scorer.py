"""One score per patch, from narrow pre-norm Transformer blocks.

`context` is what a patch's score can depend on besides the patch: all other patches ("full"), a few latents that read
all patches ("latent"), or nothing ("none").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abbe.layers.by_rows import add_by_rows, by_rows
from abbe.layers.mlp import MLP
from abbe.layers.norm import Norm

CONTEXTS = ("latent", "full", "none")


class Scorer(nn.Module):
    """[T, dim] packed rows, offsets [B+1] → [T] float32."""

    def __init__(self, dim: int, *, width: int, layers: int, heads: int, latents: int, context: str) -> None:
        super().__init__()
        self.context = context
        self.enter = nn.Linear(dim, width)
        self.leave = nn.Linear(width, 1, bias=False)  # scores are standardised, so a bias would cancel
        if context == "none":
            return
        kind = LatentBlock if context == "latent" else FullBlock
        self.blocks = nn.ModuleList(kind(width, heads) for _ in range(layers))
        self.norm = Norm(width)
        if context == "latent":
            self.latents = nn.Parameter(torch.randn(latents, width) * 0.02)

    def forward(self, x_TD: Tensor, offsets: Tensor) -> Tensor:
        if self.context == "none":
            return by_rows(lambda rows: self.leave(F.gelu(self.enter(rows))), x_TD).squeeze(1).float()
        x, lengths = by_rows(self.enter, x_TD), offsets.diff().tolist()
        latents = self.latents.expand(len(lengths), -1, -1) if self.context == "latent" else None
        for block in self.blocks:
            x, latents = block(x, latents, lengths)
        return by_rows(lambda rows: self.leave(self.norm(rows)), x).squeeze(1).float()


class FullBlock(nn.Module):
    """Every token of a slide attends to all others: N² products, but no N × N matrix in memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, latents: Tensor | None, lengths: list[int]) -> tuple[Tensor, Tensor | None]:
        q, k, v = by_rows(lambda rows: self.qkv(self.norm1(rows)), x).chunk(3, 1)
        seen, latents = self.mix(q, k, v, latents, lengths)
        x = add_by_rows(x, self.out, seen)
        return add_by_rows(x, lambda rows: self.mlp(self.norm2(rows)), x), latents

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, latents: Tensor | None, lengths: list[int]
    ) -> tuple[Tensor, Tensor | None]:
        slides = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([attend(*slide, self.heads) for slide in slides]), latents


class LatentBlock(FullBlock):
    """A slide's latents read all tokens, then the tokens read the latents: O(N) instead of O(N²)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.latent_norm1, self.latent_norm2 = Norm(width), Norm(width)
        self.latent_q = nn.Linear(width, width)
        self.latent_out = nn.Linear(width, width)
        self.latent_kv = nn.Linear(width, 2 * width)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, latents: Tensor | None, lengths: list[int]
    ) -> tuple[Tensor, Tensor | None]:
        assert latents is not None
        queries = self.latent_q(self.latent_norm1(latents))
        slides = zip(queries, k.split(lengths), v.split(lengths), strict=True)
        latents = latents + self.latent_out(torch.stack([attend(*slide, self.heads) for slide in slides]))
        keys, values = self.latent_kv(self.latent_norm2(latents)).chunk(2, -1)
        slides = zip(q.split(lengths), keys, values, strict=True)
        return torch.cat([attend(*slide, self.heads) for slide in slides]), latents


def attend(q_LW: Tensor, k_MW: Tensor, v_MW: Tensor, heads: int) -> Tensor:
    """[L, W]: multi-head attention of L rows over M rows."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1)[None] for x in (q_LW, k_MW, v_MW))
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
