"""Gated attention: the scorer of attention-based MIL."""

from __future__ import annotations

from torch import Tensor, nn


class GatedAttention(nn.Module):
    """One logit per token: w · (tanh(V x) ⊙ sigmoid(U x)). [T, D] → [T]. Ilse et al. 2018, eq. 9."""

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.both = nn.Linear(width, 2 * hidden)  # V and U in one product, a third faster
        self.logit = nn.Linear(hidden, 1)

    def forward(self, rows_TD: Tensor) -> Tensor:
        value, gate = self.both(rows_TD).chunk(2, dim=1)
        return self.logit(value.tanh() * gate.sigmoid()).squeeze(1)
