"""TC-SSA: a gate routes each patch to the best two of K slots; a slot's token is the refined mean of its patches.

Source: "TC-SSA: Token Compression via Semantic Slot Aggregation for Gigapixel Pathology Reasoning", §2, and its
README for the z-loss and the expert. What the sources leave open is settled in docs/methods/tcssa.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abbe.condensers.base import Budget, Condenser
from abbe.condensers.streaming import Stream, no_assignment
from abbe.errors import ConfigError, InputError, check_range
from abbe.ops.precision import exact_float32
from abbe.ops.routing import Routed, gated_mean
from abbe.types import Assignment, Condensed, TokenBatch, offsets_of


class TCSSA(Condenser):
    """Semantic slots. `tokens` is the number of slots, which have trained weights, so calls cannot change it.

    top_k: slots a patch contributes to (at most K).   noise: std of the Gaussian noise on training logits.
    hidden, dropout: of each slot's expert.   shared_experts: one expert for all slots (ablation).
    gate_bias: add a bias, as the authors' code does.   aux_weight: λ of the clustering loss.
    dead_slots: a slot without patches is masked ("mask"), or its token is the expert of a zero vector and counts like
    any other ("constant", as in the authors' code).
    """

    references = ("TC-SSA: Token Compression via Semantic Slot Aggregation for Gigapixel Pathology Reasoning (2026)",)
    small = {"tokens": 4, "hidden": 8}
    grid = {"tokens": [16, 32, 64, 128], "aux_weight": [0.0, 0.01, 0.1, 1.0]}
    merges = True
    cuts_mass = True  # only the top_k of P are kept, without renormalising
    trainable = True
    streams = True
    fixed_budget = True

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
        dead_slots: Literal["mask", "constant"] = "mask",
    ) -> None:
        super().__init__(dim=dim, tokens=tokens)
        if not isinstance(self.tokens, int):
            raise ConfigError(f"tcssa: tokens must be an int, the number of slots, got {tokens!r}")
        tokens = self.tokens
        check_range("tcssa", 1, top_k=top_k, hidden=hidden)
        check_range("tcssa", 0, noise=noise, aux_weight=aux_weight)
        check_range("tcssa", 0, below=1, dropout=dropout)
        self.slots, self.top_k, self.noise, self.aux_weight = tokens, min(top_k, tokens), noise, aux_weight
        self.constant = dead_slots == "constant"
        self.gate = nn.Linear(dim, tokens, bias=gate_bias)
        self.experts = SlotExperts(dim, hidden, 1 if shared_experts else tokens, dropout)

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """The number of slots for every slide. Raises InputError for any other budget."""
        other = set(super().budgets(lengths, tokens)) - {self.slots}
        if other:
            raise InputError(
                f"tcssa: this condenser has {self.slots} slots, which are trained weights, so a call cannot ask for "
                f"{min(other)} tokens; train another condenser with that number"
            )
        return [self.slots] * len(lengths)

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        """K for every slide, because slot k is always token k."""
        return self.budgets(torch.as_tensor(lengths, dtype=torch.int64), tokens)

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        routed = self.route(batch, noise=self.noise if soft else 0.0)
        assignment = Assignment(routed.index, routed.weight, batch.offsets)
        return self.refine(routed, batch.lengths0, batch.slide_ids, assignment, batch.features.dtype)

    def route(self, batch: TokenBatch, *, noise: float) -> Routed:
        """Route every patch to its best slots. Logits are always float32: in bf16 centres are off by 1–2.5 %."""
        with exact_float32(batch.features.device.type):
            return gated_mean(
                batch.features,
                self.gate.weight.float(),
                None if self.gate.bias is None else self.gate.bias.float(),
                batch.offsets,
                amount_T=(batch.mass * batch.weight * batch.mask).float(),
                top_k=self.top_k,
                noise=noise,
            )

    def refine(
        self,
        routed: Routed,
        lengths0: Tensor,
        slide_ids: tuple[str, ...],
        assignment: Assignment,
        dtype: torch.dtype,
    ) -> Condensed:
        """Apply the experts to the centres, and compute the clustering loss of the routing."""
        (b, k), device = routed.mass.shape, routed.mass.device
        refined = self.experts(routed.centres.to(self.experts.weight1.dtype))
        valid = torch.ones_like(routed.taken) if self.constant else routed.taken
        refined = torch.where(valid[..., None], refined, 0.0).to(dtype)
        tokens = TokenBatch(
            features=refined.reshape(b * k, self.dim),
            positions=None,  # a slot's patches come from anywhere on the slide
            mass=routed.mass.reshape(-1),
            mask=valid.reshape(-1),
            weight=torch.ones(b * k, device=device),
            origin=torch.arange(k, device=device).repeat(b),
            offsets=offsets_of([k] * b),
            lengths0=lengths0,
            slide_ids=slide_ids,
        )
        losses, metrics = self._losses(routed)
        return Condensed(tokens, assignment, torch.zeros(b, dtype=torch.int64), losses=losses, metrics=metrics)

    def stream(self, slide_id: str) -> _SlotStream:
        return _SlotStream(self, slide_id)

    def _losses(self, routed: Routed) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Semantic affinity clustering (TC-SSA eq. 2–5) of each slide, then the mean over slides.

        The z-loss is on the logits before noise, as in the formula.
        """
        k = self.slots
        switch = k * (routed.share * routed.chosen).sum(1)
        entropy = -(routed.share * (routed.share + 1e-8).log()).sum(1)
        uneven = 1 - entropy / math.log(k) if k > 1 else torch.zeros_like(entropy)
        z = 1e-4 * routed.log_normalizer**2
        auxiliary = (switch + 0.5 * uneven + z).mean()
        metrics = {"switch": switch.mean(), "entropy": uneven.mean(), "z": z.mean(), "aux": auxiliary}
        metrics["dead_slots"] = (~routed.taken).float().sum(1).mean()
        metrics["largest_share"] = routed.chosen.max(1).values.mean() / self.top_k
        return {"aux": self.aux_weight * auxiliary}, {name: value.detach() for name, value in metrics.items()}


class _SlotStream(Stream):
    """Holds sums over slots instead of means: K · (D + 3) numbers, whatever the length of the slide."""

    def __init__(self, condenser: TCSSA, slide_id: str) -> None:
        super().__init__(condenser, slide_id)
        self.slots = condenser
        self.sums: dict[str, Tensor] = {}

    def take(self, chunk: TokenBatch) -> Assignment:
        routed, n = self.slots.route(chunk, noise=0.0), len(chunk.features)
        new = {
            "centres": routed.centres.double() * (routed.mass.double() + 1e-9)[..., None],
            "mass": routed.mass.double(),
            "share": routed.share.double() * n,
            "chosen": routed.chosen.double() * n,
            "log_normalizer": routed.log_normalizer.double() * n,
        }
        self.sums = {name: self.sums[name] + value if self.sums else value for name, value in new.items()}
        return Assignment(routed.index, routed.weight, chunk.offsets)

    def close(self) -> Condensed:
        sums, n = self.sums, self.seen
        assert self.dtype is not None
        routed = Routed(
            centres=(sums["centres"] / (sums["mass"] + 1e-9)[..., None]).float(),
            mass=sums["mass"].float(),
            taken=sums["chosen"] > 0,
            index=torch.empty(0),
            weight=torch.empty(0),
            share=(sums["share"] / n).float(),
            chosen=(sums["chosen"] / n).float(),
            log_normalizer=(sums["log_normalizer"] / n).float(),
        )
        none = no_assignment(self.slots.top_k, routed.mass)
        return self.slots.refine(routed, torch.tensor([n]), (self.slide_id,), none, self.dtype)


class SlotExperts(nn.Module):
    """y_k = c_k + LN(W2_k · Dropout(GELU(W1_k c_k + b1_k)) + b2_k) for all slots at once: [B, K, D] → [B, K, D].

    A single expert is shared by all slots.
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
            bound = 1 / math.sqrt(weight.shape[1])  # as nn.Linear initialises a layer
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
