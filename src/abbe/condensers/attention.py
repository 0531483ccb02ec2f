"""The K patches with the highest attention of an attention-based MIL model (ABMIL)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from abbe.condensers.base import Condenser, select
from abbe.errors import check_range
from abbe.layers.gated_attention import GatedAttention
from abbe.ops.segments import segment_softmax, segment_weighted_sum
from abbe.types import Condensed, TokenBatch


class Attention(Condenser):
    """Gated attention gives each patch a score; the K best are kept, in slide order.

    A kept token is scaled by K · softmax of the scores over the kept, so that the task's gradient reaches the scorer.
    That gradient says nothing about the dropped patches. So training asks for the attention-pooled mean of all patches,
    `predictions["attention"]` [B, D], which the model supervises with a head of its own.
    hidden: width of the scorer.
    """

    references = ("Attention-based Deep Multiple Instance Learning (Ilse, Tomczak & Welling 2018)",)
    small = {"tokens": 4, "hidden": 8}
    grid = {"tokens": [8, 16, 32, 64, 128]}
    selects = True
    changes_features = True  # kept tokens are scaled by their score
    trainable = True

    def __init__(self, *, dim: int, tokens: int | float = 32, hidden: int = 128) -> None:
        super().__init__(dim=dim, tokens=tokens)
        check_range("attention", 1, hidden=hidden)
        self.scorer = GatedAttention(dim, hidden)
        self.register_load_state_dict_pre_hook(_rename_scorer)

    @property
    def prediction_names(self) -> tuple[str, ...]:
        return ("attention",)

    def scores(self, rows_TD: Tensor) -> Tensor:
        """Attention score of each row, [T] float32, before the softmax."""
        return self.scorer(rows_TD.to(self.scorer.both.weight.dtype)).float()

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool, predictions: bool = False) -> Condensed:
        dtype = batch.features.dtype
        scores = self.scores(batch.features).masked_fill(~batch.mask, -torch.inf)
        kept = [
            scores[start : start + n].argsort(descending=True, stable=True)[:k].sort().values
            for start, n, k in zip(batch.offsets.tolist(), batch.lengths.tolist(), budgets, strict=False)
        ]
        condensed = select(batch, kept)
        tokens = condensed.tokens
        rows = torch.cat([rows + start for rows, start in zip(kept, batch.offsets.tolist(), strict=False)])
        share = segment_softmax(scores[rows], tokens.slide_index, len(batch))
        scale = share * tokens.lengths.to(share.device)[tokens.slide_index]
        found = replace(condensed, tokens=replace(tokens, features=tokens.features * scale[:, None].to(dtype)))
        if not predictions:
            return found
        everywhere = segment_softmax(scores, batch.slide_index, len(batch)).to(dtype)
        return replace(
            found, predictions={"attention": segment_weighted_sum(batch.features, everywhere, batch.offsets)}
        )


def _rename_scorer(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Load weights saved when the scorer's layers belonged to the condenser itself."""
    for layer in ("both", "logit"):
        for kind in ("weight", "bias"):
            if (value := state.pop(f"{prefix}{layer}.{kind}", None)) is not None:
                state[f"{prefix}scorer.{layer}.{kind}"] = value
