"""The two-layer perceptron of Transformer blocks."""

from __future__ import annotations

from torch import nn


class MLP(nn.Sequential):
    """width → hidden → width, GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
