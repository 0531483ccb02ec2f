"""TC-SSA: a gate routes each patch to its two best of K slots; a slot's token is the mean of what it got, refined.

Source: "TC-SSA: Token Compression via Semantic Slot Aggregation for Gigapixel Pathology Reasoning", §2, and its
README for the z-loss and the expert. What the sources leave open is settled in docs/methods/tcssa.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abbe.condensers.base import Budget, Condenser
from abbe.errors import ConfigError, InputError
from abbe.ops.routing import Routed, routed_mean
from abbe.ops.segments import segment_mean
from abbe.types import Assignment, Condensed, TokenBatch, offsets_of


class TCSSA(Condenser):
    """Semantic slots. `tokens` is the number of slots: weights, so it is fixed when the condenser is made.

    top_k: slots a patch contributes to (at most K).   noise: std of the Gaussian added to training logits.
    hidden, dropout: of each slot's expert.   shared_experts: one expert for all slots (ablation).
    gate_bias: the formula has none, the authors' code has one.   aux_weight: λ of the clustering loss.
    """

    references = ("TC-SSA: Token Compression via Semantic Slot Aggregation for Gigapixel Pathology Reasoning (2026)",)
    small = {"tokens": 4, "hidden": 8}
    grid = {"tokens": [16, 32, 64, 128], "aux_weight": [0.0, 0.01, 0.1, 1.0]}
    merges = True
    cuts_mass = True  # P is cut to its top_k and not renormalised
    trainable = True

    def __init__(
        self,
        *,
        dim: int,
        tokens: int = 32,
        top_k: int = 2,
        noise: float = 0.1,
        hidden: int = 512,
        dropout: float = 0.25,
        shared_experts: bool = False,
        gate_bias: bool = False,
        aux_weight: float = 0.1,
    ) -> None:
        super().__init__(dim=dim, tokens=tokens)
        if not isinstance(tokens, int):
            raise ConfigError(f"tcssa: tokens is a number of slots, an int; got {tokens!r}")
        if top_k < 1:
            raise ConfigError(f"tcssa: top_k must be at least 1, got {top_k}")
        self.slots, self.top_k, self.noise, self.aux_weight = tokens, min(top_k, tokens), noise, aux_weight
        self.gate = nn.Linear(dim, tokens, bias=gate_bias)
        self.experts = SlotExperts(dim, hidden, 1 if shared_experts else tokens, dropout)

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """The number of slots for every slide. Raises InputError for any other budget: slots are trained weights."""
        asked = set(super().budgets(lengths, tokens))
        if asked - {self.slots}:
            raise InputError(
                f"tcssa: this condenser has {self.slots} slots, which are trained weights, so a call cannot ask for "
                f"{sorted(asked - {self.slots})[0]} tokens; train another with tokens=…"
            )
        return [self.slots] * len(lengths)

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        """K for every slide: a slot without patches is returned masked, so that slot k is always token k."""
        return self.budgets(torch.as_tensor(lengths, dtype=torch.int64), tokens)

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        b, k, device = len(batch), self.slots, batch.features.device
        # Logits in float32 whatever the features: in bf16 they cost 1–2.5 % of c_k.
        with torch.autocast(device.type, enabled=False):
            bias = None if self.gate.bias is None else self.gate.bias.float()
            clean = F.linear(batch.features.float(), self.gate.weight.float(), bias)
            logits = clean + self.noise * torch.randn_like(clean) if soft and self.noise else clean
            amount = (batch.mass * batch.weight * batch.mask).float()
            routed = routed_mean(batch.features, logits, batch.offsets, amount_T=amount, top_k=self.top_k)
            # The z-loss is on z, the logits before noise, as the formula writes it.
            log_normalizer = segment_mean(clean.logsumexp(1), amount, batch.slide_index, b)
        refined = self.experts(routed.centres.to(self.experts.weight1.dtype))
        refined = torch.where(routed.taken[..., None], refined, 0.0).to(batch.features.dtype)
        tokens = TokenBatch(
            features=refined.reshape(b * k, self.dim),
            positions=None,  # a slot gathers patches from anywhere: it has no place
            mass=routed.mass.reshape(-1),
            mask=routed.taken.reshape(-1),
            weight=torch.ones(b * k, device=device),
            origin=torch.arange(k, device=device).repeat(b),
            offsets=offsets_of([k] * b),
            lengths0=batch.lengths0,
            slide_ids=batch.slide_ids,
        )
        losses, metrics = self._losses(routed, log_normalizer)
        assignment = Assignment(routed.index, routed.weight.detach(), batch.offsets)
        return Condensed(tokens, assignment, torch.zeros(b, dtype=torch.int64), losses=losses, metrics=metrics)

    def _losses(self, routed: Routed, log_normalizer: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Semantic affinity clustering (TC-SSA eq. 2–5), a slide at a time, then the mean over slides."""
        k = self.slots
        switch = k * (routed.share * routed.chosen).sum(1)
        entropy = -(routed.share * (routed.share + 1e-8).log()).sum(1)
        uneven = 1 - entropy / math.log(k) if k > 1 else torch.zeros_like(entropy)
        z = 1e-4 * log_normalizer**2
        auxiliary = (switch + 0.5 * uneven + z).mean()
        metrics = {"switch": switch.mean(), "entropy": uneven.mean(), "z": z.mean(), "aux": auxiliary}
        metrics["dead_slots"] = (~routed.taken).float().sum(1).mean()
        metrics["largest_share"] = routed.chosen.max(1).values.mean() / self.top_k
        return {"aux": self.aux_weight * auxiliary}, {name: value.detach() for name, value in metrics.items()}


class SlotExperts(nn.Module):
    """y_k = c_k + LN(W2_k · Dropout(GELU(W1_k c_k + b1_k)) + b2_k), all slots in one batched product.

    [B, K, D] → [B, K, D]. With one expert it is shared by all slots.
    """

    def __init__(self, dim: int, hidden: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(experts, dim, hidden))
        self.bias1 = nn.Parameter(torch.empty(experts, hidden))
        self.weight2 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.bias2 = nn.Parameter(torch.empty(experts, dim))
        self.scale = nn.Parameter(torch.ones(experts, dim))
        self.shift = nn.Parameter(torch.zeros(experts, dim))
        self.dropout = nn.Dropout(dropout)
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            bound = 1 / math.sqrt(weight.shape[1])  # what nn.Linear does for each slot's own layer
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, centres_BKD: Tensor) -> Tensor:
        inner = torch.einsum("bkd,kdh->bkh", centres_BKD, self._each(self.weight1, centres_BKD)) + self.bias1
        inner = self.dropout(F.gelu(inner))
        outer = torch.einsum("bkh,khd->bkd", inner, self._each(self.weight2, centres_BKD)) + self.bias2
        return centres_BKD + F.layer_norm(outer, outer.shape[-1:]) * self.scale + self.shift

    @staticmethod
    def _each(weight: Tensor, centres_BKD: Tensor) -> Tensor:
        return weight.expand(centres_BKD.shape[1], -1, -1)
