"""Slide → class: features brought to one scale, a condenser, then a head that pools the weighted tokens.

Head: LayerNorm → pooled over valid tokens → MLP(512, GELU, dropout 0.3), as in the TC-SSA authors' code. Pooling
honours `TokenBatch.weight` and `mask`: a plain mean would drown K chosen tokens in N − K noises on a soft path. Or one
of torchmil's heads, from the normed tokens to the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path

import torch
from torch import Tensor, nn

from abbe.condensers import create_condenser
from abbe.errors import ConfigError
from abbe.layers.gated_attention import GatedAttention
from abbe.models.config import ClassifierConfig
from abbe.models.hub import save_pretrained
from abbe.models.torchmil_heads import HEADS, TorchMILHead
from abbe.ops.segments import segment_softmax, segment_sum, segment_weighted_sum
from abbe.types import Condensed, TokenBatch


@dataclass(frozen=True, eq=False)
class Prediction:
    """logits: [B, C].   attention: [T] share of each token in its slide's pooled vector, Σ = 1 a slide; 0 with summary
    pooling, which reads no token, and with transmil, whose attention would be a matrix.

    condensed: what the condenser gave; `condensed.losses` belong to the training loss.
    auxiliary: [B, C] logits from each of the condenser's own predictions, which training supervises too.
    instance_loss: labels [B] → scalar summed over slides, what clam and dsmil teach single tokens; None for the others.
    """

    logits: Tensor
    attention: Tensor
    condensed: Condensed
    auxiliary: dict[str, Tensor]
    instance_loss: Callable[[Tensor], Tensor] | None = None

    @property
    def probabilities(self) -> Tensor:
        """[B, C], rows sum to 1."""
        return self.logits.softmax(1)


class Classifier(nn.Module):
    """TokenBatch → Prediction."""

    kind = "classifier"
    Config = ClassifierConfig

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.scaler = FeatureScaler(config.dim)
        self.condenser = create_condenser(config.condenser, dim=config.dim, **config.condenser_options)
        width = self.condenser.width
        if config.pooling == "summary" and not self.condenser.summarises:
            raise ConfigError(f"pooling 'summary' needs a condenser that gives one; {config.condenser} has none")
        self.norm = nn.LayerNorm(width)
        self.pool = GatedAttention(width) if config.pooling == "attention" else None
        self.head = (
            TorchMILHead(config.pooling, width=width, classes=len(config.classes))
            if config.pooling in HEADS
            else nn.Sequential(
                nn.Linear(width, config.hidden),
                nn.GELU(),
                nn.Dropout(config.dropout),
                nn.Linear(config.hidden, len(config.classes)),
            )
        )
        self.frozen = False
        self.auxiliary = nn.ModuleDict(
            {
                _module_name(name): nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(config.classes)))
                for name in self.condenser.prediction_names
            }
        )

    def forward(self, batch: TokenBatch, *, tokens: int | float | Sequence[int] | None = None) -> Prediction:
        """Classify every slide of the batch; `tokens` is a budget for this call, where the method allows one."""
        condensed = self.condenser(self.scaler(batch), tokens=tokens)
        auxiliary = {name: self.auxiliary[_module_name(name)](x) for name, x in condensed.predictions.items()}
        if isinstance(self.head, TorchMILHead):
            return self._by_torchmil(self.head, condensed, auxiliary)
        pooled, attention = self._pooled(condensed)
        return Prediction(self.head(pooled), attention, condensed, auxiliary)

    def freeze_condenser(self) -> None:
        """Leave the condenser as it is while the rest trains: no gradient, no noise, no dropout, the hard path."""
        self.frozen = True
        self.condenser.requires_grad_(requires_grad=False).eval()

    def train(self, mode: bool = True) -> Classifier:  # noqa: FBT001, FBT002 - torch's own signature
        super().train(mode)
        if self.frozen:
            self.condenser.eval()
        return self

    def _by_torchmil(self, head: TorchMILHead, condensed: Condensed, auxiliary: dict[str, Tensor]) -> Prediction:
        kept = condensed.tokens
        normed = replace(kept, features=self.norm(kept.features))
        pooled = head(normed)
        attention = torch.zeros_like(kept.weight)
        if pooled.attention is not None:
            attention = segment_softmax(pooled.attention.float(), kept.slide_index, len(kept))
        teach = partial(head.instance_loss, normed, pooled) if head.name in ("clam", "dsmil") else None
        return Prediction(pooled.logits, attention, condensed, auxiliary, teach)

    def _pooled(self, condensed: Condensed) -> tuple[Tensor, Tensor]:
        """(what the head reads of each slide [B, width], share of each token in it [T])."""
        kept = condensed.tokens
        if self.config.pooling == "summary":
            assert condensed.summary is not None
            return self.norm(condensed.summary), torch.zeros_like(kept.weight)
        rows, slide, b = self.norm(kept.features), kept.slide_index, len(kept)
        weight = kept.weight * kept.mask
        if self.pool is None:
            attention = weight / segment_sum(weight, slide, b).clamp_min(1e-9)[slide]
        else:
            logits = self.pool(rows).float() + (kept.weight + 1e-6).log()
            attention = segment_softmax(logits.masked_fill(~kept.mask, -torch.inf), slide, b)
        return segment_weighted_sum(rows, attention.to(rows.dtype), kept.offsets), attention

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> None:
        """Commit config.json, model.safetensors and README.md (`card`, Markdown) to a folder; `abbe.load` reads it."""
        save_pretrained(self, folder, card=card or f"# {self.config.condenser} slide classifier\n")

    def _repr_html_(self) -> str:
        """A table of what the model is, which notebooks display."""
        rows = {
            "classes": ", ".join(self.config.classes),
            "condenser": self.config.condenser,
            "tokens": self.condenser.tokens,
            "encoder": self.config.encoder or "unknown",
            "width": self.config.dim,
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
        return f"<table>{cells}</table>"


def _module_name(prediction: str) -> str:
    return prediction.replace("/", "_")


class FeatureScaler(nn.Module):
    """(x − centre) / spread, feature by feature; the identity until `measure` has seen the training patches.

    Encoders differ in scale (L2-normalised CONCH has a standard deviation of 0.044, `texture`'s features range from
    0.07 to 2.2), and a recipe tuned on one starves on another. Not learned: it is a buffer of the model.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    def measure(self, bags: Iterable[Tensor]) -> None:
        """Set centre and spread to the mean and standard deviation over all patches of `bags`, each [N, D]."""
        count, total, squares = 0, torch.zeros(len(self.centre)).double(), torch.zeros(len(self.centre)).double()
        for features in bags:
            rows = features.double()
            count += len(rows)
            total += rows.sum(0)
            squares += rows.square().sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        self.centre.copy_(mean)
        # A feature that never varies says nothing; dividing by its spread would turn rounding into signal.
        self.spread.copy_(torch.where(variance > 1e-10, variance.sqrt(), 1.0))

    def forward(self, batch: TokenBatch) -> TokenBatch:
        features = (batch.features - self.centre.to(batch.features.dtype)) / self.spread.to(batch.features.dtype)
        return replace(batch, features=features)
