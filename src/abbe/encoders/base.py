"""The base of slide encoders: TokenBatch → Condensed, one token out per token in, unless `between` drops some."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from abbe.errors import BagError, check_range
from abbe.types import Condensed, TokenBatch

Between = Callable[[int, TokenBatch], Condensed | None]
"""(number of the block that has run, hidden tokens) → the tokens to keep, None for all; a selecting condenser fits."""


class Encoder(nn.Module):
    """dim: width D of the features.   width: of the encoded tokens."""

    width: int

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        check_range(self.name, 1, dim=dim)
        self.dim = dim
        self.width = dim

    @property
    def name(self) -> str:
        """The registered name, which is the file's name."""
        return type(self).__module__.rpartition(".")[2]

    def forward(self, batch: TokenBatch, *, between: Between | None = None) -> Condensed:
        """Encode every slide. Raises BagError for another width or a slide without patches."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward")

    def _check(self, batch: TokenBatch) -> None:
        if batch.width != self.dim:
            raise BagError(f"{self.name}: features are {batch.width} wide, but the encoder has dim={self.dim}")
        for slide_id, n in zip(batch.slide_ids, batch.lengths.tolist(), strict=True):
            if n == 0:
                raise BagError(f"{self.name}: slide {slide_id!r} has no patches; leave empty slides out of the batch")
