"""SparseLearn: a scorer learns which K patches to keep.

In training, low-scoring patches are replaced with noise instead of being cut.

Source: "Learnable Token Sparsification for Efficient Gigapixel Whole Slide Image Reasoning", §3.
What it leaves open is settled in docs/methods/sparselearn.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abbe.condensers.base import Budget, Condenser, select
from abbe.condensers.streaming import SelectStream
from abbe.errors import ConfigError, InputError, check_range, nearest
from abbe.layers.mlp import MLP
from abbe.layers.norm import Norm
from abbe.layers.scorer import CONTEXTS, Scorer, attend
from abbe.ops.segments import segment_mean
from abbe.ops.soft_topk import hard_topk, soft_topk
from abbe.types import Assignment, Condensed, TokenBatch

GATES = ("vp", "scale", "none")
DENOISERS = ("diagonal", "global", "none")
SELECTORS = ("soft_topk", "ste", "gumbel")


class SparseLearn(Condenser):
    """Keeps the K patches with the highest learned scores; tokens are their layer-normalised features, in slide order.

    context: what the scorer sees of other patches: "latent", "full" or "none" (pointwise; only this one streams).
    layers, scorer_width, heads, latents: of the scorer; heads also of a global denoiser.
    gate, denoiser, selector: parts of the soft path, see GATES, DENOISERS and SELECTORS; the first of each is the
    published method, the others are ablations.
    tau_start, tau_end: temperature of Soft Top-K at the start and end of training, on a cosine; see `set_progress`.
    budget_start: keep rate from which the budget falls to K on the same cosine; None for K throughout.
    max_train_patches: maximum number of patches per slide on the soft path, drawn at random; None for all. The budget
    shrinks in the same ratio, so that the keep rate is the one in eval.

    On the soft path every patch is a token, and its `weight` is how much of its signal remains.
    """

    references = ("Learnable Token Sparsification for Efficient Gigapixel Whole Slide Image Reasoning (2026)",)
    small = {"tokens": 4, "scorer_width": 8, "heads": 2, "latents": 3}
    grid = {"tokens": [8, 16, 32, 64, 128], "tau_start": [1.0, 0.5, 0.2]}
    selects = True
    changes_features = True
    trainable = True
    expected_failures = {
        "every_trainable_parameter_gets_a_gradient_on_every_step": (
            "the denoiser's output projections start at zero, so the layers before them learn from the second step on"
        )
    }

    tau: Tensor
    progress: Tensor

    def __init__(
        self,
        *,
        dim: int,
        tokens: int | float = 32,
        context: str = "latent",
        layers: int = 2,
        scorer_width: int = 256,
        heads: int = 4,
        latents: int = 64,
        gate: str = "vp",
        denoiser: str = "diagonal",
        selector: str = "soft_topk",
        tau_start: float = 1.0,
        tau_end: float = 0.05,
        budget_start: float | None = None,
        max_train_patches: int | None = None,
    ) -> None:
        super().__init__(dim=dim, tokens=tokens)
        for option, value, known in (
            ("context", context, CONTEXTS),
            ("gate", gate, GATES),
            ("denoiser", denoiser, DENOISERS),
            ("selector", selector, SELECTORS),
        ):
            if value not in known:
                raise ConfigError(
                    f"sparselearn: {option} must be one of {', '.join(known)}, got {value!r}. {nearest(value, known)}"
                )
        check_range("sparselearn", 1, scorer_width=scorer_width, heads=heads)
        if context != "none":  # a pointwise scorer has no blocks and no latents
            check_range("sparselearn", 1, layers=layers, latents=latents)
        if not 0 < tau_end <= tau_start < math.inf:
            raise ConfigError(
                f"sparselearn: need 0 < tau_end ≤ tau_start < ∞, got tau_start={tau_start}, tau_end={tau_end}"
            )
        if budget_start is not None and not 0 < budget_start <= 1:
            raise ConfigError(f"sparselearn: budget_start must be a keep rate in (0, 1] or None, got {budget_start}")
        if max_train_patches is not None and max_train_patches < 1:
            raise ConfigError(f"sparselearn: max_train_patches must be at least 1 or None, got {max_train_patches}")
        for width, used in ((scorer_width, context != "none"), (dim, denoiser == "global")):
            if used and width % heads:
                raise ConfigError(f"sparselearn: a width of {width} is not divisible by heads={heads}")
        self.context, self.gate, self.selector = context, gate, selector
        self.tau_start, self.tau_end = tau_start, tau_end
        self.budget_start, self.max_train_patches = budget_start, max_train_patches
        # eps is far below the variance of L2-normalised features (0.002), so that their rows get unit variance too.
        self.norm = Norm(dim, eps=1e-8, elementwise_affine=False)
        self.scorer = Scorer(dim, width=scorer_width, layers=layers, heads=heads, latents=latents, context=context)
        self.denoiser = Denoiser(dim, heads, mixing=denoiser == "global") if denoiser != "none" else None
        self.register_buffer("tau", torch.tensor(tau_start))
        self.register_buffer("progress", torch.tensor(0.0))

    def set_progress(self, fraction: float) -> None:
        """Set temperature and budget for the share of training that is done, 0 … 1."""
        if not 0 <= fraction <= 1:
            raise InputError(f"sparselearn: progress must be in [0, 1], got {fraction}")
        self.progress.fill_(fraction)
        self.tau.fill_(self.tau_end + (self.tau_start - self.tau_end) * _falling(fraction))

    @property
    def settled(self) -> bool:
        """Whether τ ≤ 2 · tau_end. At a higher τ most of the soft weight lies outside the K patches kept in eval."""
        return float(self.tau) <= 2 * self.tau_end

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        if not soft:
            return super().count(lengths, tokens=tokens)
        return [min(int(n), self.max_train_patches or int(n)) for n in lengths]

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        if soft:
            return self._soft(batch, budgets)
        x = self.norm(batch.features.float())
        kept = hard_topk(self._scores(x, batch.offsets), budgets, batch.offsets)
        return self._measured(select(replace(batch, features=x.to(batch.features.dtype)), kept))

    def _soft(self, batch: TokenBatch, budgets: list[int]) -> Condensed:
        most = self.max_train_patches or int(batch.lengths.max())
        taken = select(batch, [torch.randperm(n)[:most].sort().values for n in batch.lengths.tolist()])
        tokens = taken.tokens
        x = self.norm(tokens.features.float())
        scores = standardised(self._scores(x, tokens.offsets), tokens)
        if self.selector == "gumbel":  # before the division: after it, a low τ would drown the noise
            scores = scores - torch.empty_like(scores).exponential_().log()
        u = scores / self.tau
        wanted = self._annealed(budgets, batch.lengths, tokens.lengths)
        above = u - soft_topk(u, wanted, tokens.offsets)[tokens.slide_index]
        hard = _members(u, wanted, tokens.offsets) if self.selector == "ste" else None
        weight = straight(above.sigmoid(), hard)
        x = self._gated(x, above, weight, hard)
        if self.denoiser is not None:
            x = self.denoiser(x.to(self.denoiser.value.weight.dtype), tokens.lengths.tolist())
        if self.gate == "none":  # the control: no gradient, but the scorer stays in the graph
            weight = 1 + 0 * weight
        shares = weight.detach().new_zeros(taken.assignment.index.shape)
        shares[taken.assignment.index >= 0] = weight.detach()
        return self._measured(
            Condensed(
                replace(tokens, features=x.to(batch.features.dtype), weight=tokens.weight * weight),
                Assignment(taken.assignment.index, shares, taken.assignment.offsets),
                taken.dropped,
            )
        )

    def _scores(self, x: Tensor, offsets: Tensor) -> Tensor:
        scores: Tensor = self.scorer(x.to(self.scorer.enter.weight.dtype), offsets)
        return scores

    def _annealed(self, budgets: list[int], lengths: Tensor, taken: Tensor) -> list[float]:
        """The budget of each slide of n patches, m of which were drawn."""
        wanted = []
        for k, n, m in zip(budgets, lengths.tolist(), taken.tolist(), strict=True):
            share = max(1.0, k * m / n) if m < n else float(k)
            if self.budget_start is not None:
                share += max(0.0, self.budget_start * m - share) * _falling(float(self.progress))
            wanted.append(share)
        return wanted

    def _gated(self, x: Tensor, above: Tensor, weight: Tensor, hard: Tensor | None) -> Tensor:
        if self.gate == "none":
            return x
        if self.gate == "scale":
            return weight[:, None] * x
        # √α as exp(½ log α): its slope stays bounded as α approaches 0 or 1.
        signal = straight((0.5 * F.logsigmoid(above)).exp(), hard)
        noise = straight((0.5 * F.logsigmoid(-above)).exp(), None if hard is None else 1 - hard)
        return signal[:, None] * x + noise[:, None] * torch.randn_like(x)

    def _measured(self, condensed: Condensed) -> Condensed:
        left_out = condensed.dropped.sum() / condensed.assignment.offsets[-1]
        return replace(condensed, metrics={"tau": self.tau.detach().clone(), "dropped_share": left_out})

    def stream(self, slide_id: str) -> _PointwiseStream:
        """Raises InputError unless the scorer is pointwise (context="none")."""
        if self.context != "none":
            raise InputError(
                f"sparselearn does not stream with context={self.context!r}: a score depends on all patches of the "
                'slide; pack them into one TokenBatch, or train a condenser with context="none"'
            )
        return _PointwiseStream(self, slide_id)


class _PointwiseStream(SelectStream):
    def __init__(self, condenser: SparseLearn, slide_id: str) -> None:
        super().__init__(condenser, slide_id, lambda chunk: condenser._scores(chunk.features, chunk.offsets))
        self.method = condenser

    def take(self, chunk: TokenBatch) -> Assignment:
        # Score in float32, as a call does: rounding first would change which patches are kept.
        taken = super().take(replace(chunk, features=self.method.norm(chunk.features.float())))
        return replace(taken, weight=taken.weight.to(chunk.features.dtype))

    def close(self) -> Condensed:
        held = super().close()
        tokens = replace(held.tokens, features=held.tokens.features.to(self.dtype))
        found = replace(held, tokens=tokens)
        share = found.dropped.sum() / self.seen
        return replace(found, metrics={"tau": self.method.tau.detach().clone(), "dropped_share": share})


class Denoiser(nn.Module):
    """A pre-norm Transformer block whose attention mask is the identity: each token attends only to itself.

    Softmax over one key is 1, so attention is the value and output projections. `mixing` removes the mask (ablation).
    The last projections of attention and MLP start at zero, so the block starts as the identity.
    """

    def __init__(self, width: int, heads: int, *, mixing: bool = False) -> None:
        super().__init__()
        self.heads, self.mixing = heads, mixing
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.qk = nn.Linear(width, 2 * width) if mixing else None
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = MLP(width, 4 * width)
        for parameter in (*self.out.parameters(), *self.mlp[-1].parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        normed = self.norm1(x)
        seen = self.value(normed)
        if self.qk is not None:
            q, k = self.qk(normed).chunk(2, 1)
            slides = zip(q.split(lengths), k.split(lengths), seen.split(lengths), strict=True)
            seen = torch.cat([attend(*slide, self.heads) for slide in slides])
        x = x + self.out(seen)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def standardised(scores: Tensor, tokens: TokenBatch) -> Tensor:
    """(s − mean) / (std + 1e-6) over each slide, population std: zeros for one patch or equal scores."""
    slide, b = tokens.slide_index, len(tokens)
    centred = scores - segment_mean(scores, torch.ones_like(scores), slide, b)[slide]
    variance = segment_mean(centred.square(), torch.ones_like(scores), slide, b)
    # The clamp keeps the slope of the root finite at zero variance.
    return centred / (variance.clamp_min(1e-24).sqrt() + 1e-6)[slide]


def straight(soft: Tensor, hard: Tensor | None) -> Tensor:
    """Straight-through estimator: the value of `hard` with the gradient of `soft`; `soft` if hard is None."""
    return soft if hard is None else hard + (soft - soft.detach())


def _members(u: Tensor, budgets: list[float], offsets: Tensor) -> Tensor:
    """[T]: 1 for the K best of each slide, 0 for the others."""
    hard = torch.zeros_like(u)
    kept = hard_topk(u, [round(k) for k in budgets], offsets)
    for rows, start in zip(kept, offsets.tolist(), strict=False):
        hard[rows + start] = 1
    return hard


def _falling(fraction: float) -> float:
    """From 1 at fraction 0 to 0 at fraction 1, on a cosine."""
    return 0.5 * (1 + math.cos(math.pi * fraction))
