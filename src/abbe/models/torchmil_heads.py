"""torchmil's pooling as heads of a classifier: ABMIL, CLAM, DSMIL, TransMIL, on condensed tokens or on all patches.

torchmil's models take padded bags and give one binary logit. Here their pooling parts run on one slide at a time, so
nothing is padded, and the output layer for C classes is our own. What a part cannot do for C classes is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abbe.errors import ConfigError, InputError, nearest
from abbe.types import TokenBatch

HEADS = ("abmil", "clam", "dsmil", "transmil")


@dataclass(frozen=True, eq=False)
class Pooled:
    """logits: [B, C].   vectors: [B, W], the input of the output layer.

    attention: [T] before normalisation, or None for TransMIL, whose attention is an N × N matrix.
    """

    logits: Tensor
    vectors: Tensor
    attention: Tensor | None


class TorchMILHead(nn.Module):
    """TokenBatch [T, width] → Pooled, by torchmil's model `name`, one of HEADS.

    hidden: width of the attention (for TransMIL, of its blocks).
    instances: number of most and of least attended patches that CLAM labels.

    Raises ConfigError for another name, if torchmil is not installed, and for DSMIL with more than two classes, because
    one logit selects its critical patch.
    """

    def __init__(self, name: str, *, width: int, classes: int, hidden: int = 128, instances: int = 8) -> None:
        super().__init__()
        if name not in HEADS:
            raise ConfigError(f"unknown head {name!r}. {nearest(name, HEADS)}")
        if classes < 2:
            raise ConfigError(f"{name}: a head needs at least two classes, got {classes}")
        if name == "dsmil" and classes > 2:
            raise ConfigError(
                f"dsmil: torchmil's DSMIL selects its critical patch by one logit, so it supports two classes, not "
                f"{classes}; use abmil, clam or transmil"
            )
        self.name, self.classes = name, classes
        self.body, vector = _body(name, width, classes, hidden, instances)
        self.output = nn.Linear(vector, classes)

    def forward(self, tokens: TokenBatch) -> Pooled:
        """Pool every slide. Raises InputError for soft weights, which torchmil ignores, and for an empty slide."""
        if not bool((tokens.weight == 1).all()):
            raise InputError(
                f"{self.name}: torchmil's heads ignore soft weights; give tokens of the hard path (soft=False; in "
                "training, --condenser-train frozen), or use pooling mean or attention"
            )
        vectors, attention = [], []
        for slide in tokens:
            rows = slide.features[slide.mask]
            if len(rows) == 0:
                raise InputError(f"{self.name}: slide {slide.slide_ids[0]!r} has no valid token to pool")
            vector, scores = self._pool(rows[None])
            vectors.append(vector)
            if scores is not None:
                attention.append(scores.new_full((len(slide.mask),), -torch.inf).masked_scatter(slide.mask, scores))
        stacked = torch.cat(vectors)
        return Pooled(self.output(stacked), stacked, torch.cat(attention) if attention else None)

    def instance_loss(self, tokens: TokenBatch, pooled: Pooled, labels: Tensor) -> Tensor:
        """The method's loss on single patches, a scalar summed over slides. labels: [B] int64.

        clam: a smooth top-1 margin on the most and the least attended patches (two classes only).
        dsmil: cross-entropy between the bag's label and the critical patch.   abmil, transmil: zero.
        """
        total = pooled.logits.new_zeros(())
        if self.name == "clam" and self.classes > 2:
            raise ConfigError(
                f"clam: torchmil's instance classifiers are made for two classes, not {self.classes}; "
                "train without the instance loss"
            )
        if self.name not in ("clam", "dsmil"):
            return total
        assert pooled.attention is not None
        attention = pooled.attention.split(tokens.lengths.tolist())
        for slide, scores, label in zip(tokens, attention, labels, strict=True):
            rows = slide.features[slide.mask]
            if self.name == "clam":
                total = total + self.body.compute_inst_loss(scores[slide.mask][None], rows[None], label[None])
            else:
                critical = self.body.inst_classifier(rows).max()
                total = total + F.binary_cross_entropy_with_logits(critical, label.to(critical.dtype))
        return total

    def _pool(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(pooled vector [1, W], attention [N] or None) of one slide's tokens [1, N, width]."""
        if self.name == "transmil":
            return self.body(rows).reshape(1, -1), None
        if self.name == "dsmil":
            vector, attention = self.body(rows, return_att=True)
            return vector.reshape(1, -1), attention.flatten().clamp_min(1e-12).log()
        vector, attention = self.body.pool(rows, return_att=True)
        return vector, attention.flatten()


def _body(name: str, width: int, classes: int, hidden: int, instances: int) -> tuple[Any, int]:
    """(torchmil's model without its output layer, width of its pooled vector)."""
    try:
        from torchmil.models import ABMIL, CLAM_SB, DSMIL, TransMIL
    except ImportError as error:
        raise ConfigError(f"head {name!r} needs torchmil: pip install torchmil") from error
    common: dict[str, Any] = {"in_shape": (width,), "att_dim": hidden}
    if name == "transmil":
        body = TransMIL(**common)
        body.classifier = nn.Identity()
        for layer in body.layers:
            layer.norm2.requires_grad_(requires_grad=False)  # belongs to an MLP that torchmil leaves out
        return body, hidden
    if name == "dsmil":
        body = DSMIL(**common)
        body.bag_classifier = nn.Identity()
        return body, width
    body = ABMIL(**common, gated=True) if name == "abmil" else CLAM_SB(**common, gated=True, k_sample=instances)
    body.classifier = nn.Identity()
    if name == "clam" and classes > 2:
        body.inst_classifiers.requires_grad_(requires_grad=False)
    return body, width
