"""Base classes for methods that take one slide in chunks, in memory that does not grow with the slide."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from abbe.condensers.base import Condenser
from abbe.errors import BagError, InputError
from abbe.types import Assignment, Condensed, TokenBatch


class Stream:
    """One slide in chunks, without gradients. A method implements `take` and `close`.

    update(features [n, D], positions [n, 2] | None) → Assignment of the chunk's n patches.
    finish() → Condensed whose assignment has no rows, since keeping them would grow with the slide.
    """

    def __init__(self, condenser: Condenser, slide_id: str) -> None:
        self.condenser, self.slide_id = condenser, slide_id
        self.seen = 0
        self.dtype: torch.dtype | None = None
        self._has_positions = False

    @torch.no_grad()
    def update(self, features: Tensor, positions: Tensor | None = None) -> Assignment:
        """Add the next patches, in slide order.

        Raises BagError as a call does, and for an empty chunk or one that differs from the chunks before it: another
        dtype, or positions where there were none.
        """
        n, has_positions = len(features), positions is not None
        if n == 0:
            raise self._error("a chunk has no patches; skip empty chunks")
        if self.seen and features.dtype != self.dtype:
            raise self._error(f"features were {self.dtype}, now {features.dtype}; all chunks must have one dtype")
        if self.seen and has_positions != self._has_positions:
            raise self._error("positions must come with every chunk or with none")
        origin = torch.arange(self.seen, self.seen + n, device=features.device)
        chunk = one_slide(features, positions, origin, slide_id=self.slide_id, patches=n)
        self.condenser.check(chunk)
        self.dtype, self._has_positions = features.dtype, has_positions
        self.seen += n
        return self.take(chunk)

    @torch.no_grad()
    def finish(self) -> Condensed:
        """The slide's tokens. Raises BagError if no patches were added."""
        if self.seen == 0:
            raise self._error("no patches were added")
        return self.close()

    def take(self, chunk: TokenBatch) -> Assignment:
        """Add a chunk that has been checked."""
        raise NotImplementedError(f"{type(self).__name__} must implement take")

    def close(self) -> Condensed:
        """The tokens of all chunks."""
        raise NotImplementedError(f"{type(self).__name__} must implement close")

    def _error(self, reason: str) -> BagError:
        return BagError(f"{self.condenser.name}: slide {self.slide_id!r}: {reason}")


class SelectStream(Stream):
    """The K best patches so far. `score` gives [n], higher is better; of equal scores the first is kept.

    A chunk's assignment gives the index of its patches among those held now, −1 for those already dropped; the patches
    kept in the end are `finish().tokens.origin`.
    """

    def __init__(self, condenser: Condenser, slide_id: str, score: Callable[[TokenBatch], Tensor]) -> None:
        super().__init__(condenser, slide_id)
        if not isinstance(condenser.tokens, int):
            raise InputError(
                f"{condenser.name}: a stream needs a count of tokens, not the keep rate {condenser.tokens}, because "
                "the number of patches is not known in advance"
            )
        self.budget, self.score = condenser.tokens, score
        self.held: list[Tensor | None] = []  # scores, rows, features, positions

    def take(self, chunk: TokenBatch) -> Assignment:
        new = [self.score(chunk), chunk.origin, chunk.features, chunk.positions]
        if self.held:
            new = [None if b is None or a is None else torch.cat([a, b]) for a, b in zip(self.held, new, strict=True)]
        scores, rows = new[0], new[1]
        assert scores is not None
        assert rows is not None
        best = scores.argsort(descending=True, stable=True)[: self.budget].sort().values
        self.held = [None if value is None else value[best] for value in new]
        index = torch.full((len(rows), 1), -1, dtype=torch.int32, device=rows.device)
        index[best, 0] = torch.arange(len(best), dtype=torch.int32, device=rows.device)
        index = index[len(rows) - len(chunk.features) :]
        return Assignment(index, (index >= 0).to(chunk.features.dtype), chunk.offsets)

    def close(self) -> Condensed:
        _, rows, features, positions = self.held
        assert rows is not None
        assert features is not None
        tokens = one_slide(features, positions, rows, slide_id=self.slide_id, patches=self.seen)
        return Condensed(tokens, no_assignment(1, features), dropped=torch.tensor([self.seen - len(rows)]))


def one_slide(features: Tensor, positions: Tensor | None, origin: Tensor, *, slide_id: str, patches: int) -> TokenBatch:
    """Tokens of mass and weight 1 of one slide that has `patches` patches."""
    n = len(features)
    ones = torch.ones(n, device=features.device)
    return TokenBatch(
        features=features,
        positions=positions,
        mass=ones,
        mask=ones > 0,
        weight=ones,
        origin=origin,
        offsets=torch.tensor([0, n]),
        lengths0=torch.tensor([patches]),
        slide_ids=(slide_id,),
    )


def no_assignment(routes: int, like: Tensor) -> Assignment:
    """The assignment of a finished stream: one slide, no rows, on the device and in the dtype of `like`."""
    index = torch.empty(0, routes, dtype=torch.int32, device=like.device)
    return Assignment(index, like.new_empty(0, routes), torch.zeros(2, dtype=torch.int64))
