"""Slide → class: features on one scale, a condenser, then a head that pools the weighted tokens.

Head: pooling over valid tokens → LayerNorm → MLP(512, GELU, dropout 0.3), in this order: normalising each token first
would cancel what a condenser does to its size. Pooling uses `TokenBatch.weight` and `mask`: on a soft path, a plain
mean would drown K kept tokens in the noise of N − K others. Or one of torchmil's heads, from tokens to logits.
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
from abbe.errors import ConfigError, InputError
from abbe.layers.gated_attention import GatedAttention
from abbe.models.config import ClassifierConfig
from abbe.models.hub import save_pretrained
from abbe.models.record import TrainingRecord
from abbe.models.torchmil_heads import HEADS, TorchMILHead
from abbe.ops.segments import segment_softmax, segment_sum, segment_weighted_sum
from abbe.types import Assignment, Condensed, TokenBatch


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier says about B slides.

    logits: [B, C].
    attention: [T] share of each token in its slide's pooled vector, Σ = 1 per slide. Zeros with summary pooling, which
    reads no token, and with transmil, whose attention is a matrix.
    condensed: the condenser's result; `condensed.losses` are part of the training loss.
    auxiliary: [B, C] logits from each of the condenser's predictions, which training supervises too; empty in eval.
    instance_loss: labels [B] → scalar summed over slides, the loss on single tokens of clam and dsmil; otherwise None.
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
    record: TrainingRecord | None = None  # what it was trained on; None if that is not known

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.scaler = FeatureScaler(config.dim)
        self.condenser = create_condenser(config.condenser, dim=config.dim, **config.condenser_options)
        width = self.condenser.width
        if config.pooling == "summary" and not self.condenser.summarises:
            raise ConfigError(f"pooling 'summary' needs a condenser with a summary; {config.condenser} has none")
        self.norm = nn.LayerNorm(width) if config.norm == "tokens" or config.pooling not in HEADS else nn.Identity()
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
        """Classify every slide of the batch. tokens: a budget for this call, if the method allows one."""
        return self.classify(self.condenser(self.scaler(batch), tokens=tokens, predictions=self.training))

    def stream(self, slide_id: str) -> ClassifierStream:
        """Classify one slide in chunks. Raises InputError in training mode, or if the condenser does not stream."""
        if self.training:
            raise InputError("a classifier streams in eval mode only; call model.eval() first")
        return ClassifierStream(self, slide_id)

    def classify(self, condensed: Condensed) -> Prediction:
        """Apply the head to condensed slides."""
        auxiliary = {name: self.auxiliary[_module_name(name)](x) for name, x in condensed.predictions.items()}
        if isinstance(self.head, TorchMILHead):
            return self._by_torchmil(self.head, condensed, auxiliary)
        pooled, attention = self._pooled(condensed)
        return Prediction(self.head(pooled), attention, condensed, auxiliary)

    def freeze_condenser(self) -> None:
        """Keep the condenser fixed while the rest trains: no gradient, and always in eval mode."""
        self.frozen = True
        self.condenser.requires_grad_(requires_grad=False).eval()

    def train(self, mode: bool = True) -> Classifier:  # noqa: FBT001, FBT002 - torch's own signature
        super().train(mode)
        if self.frozen:
            self.condenser.eval()
        return self

    def _by_torchmil(self, head: TorchMILHead, condensed: Condensed, auxiliary: dict[str, Tensor]) -> Prediction:
        kept = condensed.tokens
        tokens = replace(kept, features=self.norm(kept.features)) if self.config.norm == "tokens" else kept
        pooled = head(tokens)
        attention = torch.zeros_like(kept.weight)
        if pooled.attention is not None:
            attention = segment_softmax(pooled.attention.float(), kept.slide_index, len(kept))
        teach = partial(head.instance_loss, tokens, pooled) if head.name in ("clam", "dsmil") else None
        return Prediction(pooled.logits, attention, condensed, auxiliary, teach)

    def _pooled(self, condensed: Condensed) -> tuple[Tensor, Tensor]:
        """(pooled and normalised vector of each slide [B, width], share of each token in it [T])."""
        kept = condensed.tokens
        if self.config.pooling == "summary":
            assert condensed.summary is not None
            return self.norm(condensed.summary), torch.zeros_like(kept.weight)
        early = self.config.norm == "tokens"
        rows, slide, b = self.norm(kept.features) if early else kept.features, kept.slide_index, len(kept)
        weight = kept.weight * kept.mask
        if self.pool is None:
            attention = weight / segment_sum(weight, slide, b).clamp_min(1e-9)[slide]
        else:
            logits = self.pool(rows).float() + (kept.weight + 1e-6).log()
            attention = segment_softmax(logits.masked_fill(~kept.mask, -torch.inf), slide, b)
        pooled = segment_weighted_sum(rows, attention.to(rows.dtype), kept.offsets)
        return pooled if early else self.norm(pooled), attention

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> None:
        """Write config.json, model.safetensors and README.md (`card`, Markdown) to a folder for `abbe.load`."""
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


class ClassifierStream:
    """One slide classified in chunks: the condenser's stream on scaled features, then the head."""

    def __init__(self, model: Classifier, slide_id: str) -> None:
        self.model, self.condensing = model, model.condenser.stream(slide_id)

    @torch.no_grad()
    def update(self, features: Tensor, positions: Tensor | None = None) -> Assignment:
        """Add the next patches [n, D] and [n, 2], in slide order. Returns the assignment of these n patches."""
        return self.condensing.update(self.model.scaler.scale(features), positions)

    @torch.no_grad()
    def finish(self) -> Prediction:
        """The prediction for the slide; its assignment has no rows."""
        return self.model.classify(self.condensing.finish())


class FeatureScaler(nn.Module):
    """(x − centre) / spread for each feature; the identity until `measure` has been called.

    Encoders differ in scale (L2-normalised CONCH has a standard deviation of 0.044, `texture`'s features range from
    0.07 to 2.2), and a learning rate tuned on one is wrong for another. Centre and spread are buffers, not learned.
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
        # Dividing a constant feature by its spread would turn rounding errors into signal.
        self.spread.copy_(torch.where(variance > 1e-10, variance.sqrt(), 1.0))

    def forward(self, batch: TokenBatch) -> TokenBatch:
        return replace(batch, features=self.scale(batch.features))

    def scale(self, features: Tensor) -> Tensor:
        """Rows [N, D] on the common scale, in their own dtype."""
        return (features - self.centre.to(features.dtype)) / self.spread.to(features.dtype)
