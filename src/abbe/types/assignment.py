"""Which token every patch went to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abbe.errors import InputError
from abbe.types.packed import require, require_offsets


@dataclass(frozen=True, eq=False)
class Assignment:
    """The tokens each patch was assigned to, for the original patches of all slides.

    index: [P, R] int32, token within its slide, −1 = dropped.   weight: [P, R] ≥ 0, as the method defines it; 0 where
    dropped.   offsets: [B+1] int64 on the CPU: slide b has the rows offsets[b]:offsets[b+1].

    Heatmaps, exports and coverage statistics read only this, so they work for every method.

    Raises InputError naming the field whose shape, type or values do not fit.
    """

    index: Tensor
    weight: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        require(self.index.ndim == 2 and self.index.dtype == torch.int32, "index must be int32 [P, R]", self.index)
        require(self.weight.shape == self.index.shape, f"weight must be {tuple(self.index.shape)}", self.weight)
        require(self.weight.is_floating_point(), "weight must be floating", self.weight)
        require_offsets(self.offsets, len(self.index))
        if self.index.device.type == "cpu":
            weight = self.weight.detach()
            require(bool((self.index >= -1).all()), "index must be −1 (dropped) or a token number", self.index)
            require(bool(((weight >= 0) & torch.isfinite(weight)).all()), "weight must be finite and ≥ 0", weight)
            require(not bool(weight[self.index < 0].any()), "weight must be 0 where index is −1", weight)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, b: int) -> Assignment:
        if not -len(self) <= b < len(self):
            raise IndexError(f"slide {b} is out of range for an assignment of {len(self)} slides")
        b %= len(self)
        rows = slice(int(self.offsets[b]), int(self.offsets[b + 1]))
        return Assignment(self.index[rows], self.weight[rows], torch.tensor([0, rows.stop - rows.start]))

    @property
    def main(self) -> Tensor:
        """[P]: the token with a patch's largest weight (the first of equal ones), −1 where the patch was dropped."""
        best = torch.where(self.index >= 0, self.weight, -1.0).argmax(1, keepdim=True)
        return self.index.gather(1, best).squeeze(1)

    def then(self, second: Assignment) -> Assignment:
        """This stage followed by `second`, whose "patches" are this stage's tokens: weights multiply, −1 stays dropped.

        Two routes to the same token become one route with the sum of their weights. Raises InputError if the numbers
        of slides differ, or this assignment names tokens that `second` does not have.
        """
        if len(self) != len(second):
            raise InputError(f"then: the first assignment has {len(self)} slides, the second {len(second)}")
        device = self.index.device
        slide = torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())
        start, size = second.offsets[:-1][slide].to(device), second.offsets.diff()[slide].to(device)
        parts_index, parts_weight = [], []
        for r in range(self.index.shape[1]):
            token = self.index[:, r].long()
            if not token.is_meta and bool((token >= size).any()):  # meta tensors have no values to check
                raise InputError("then: the first assignment names tokens that the second one does not have")
            row = (start + token).clamp_(min=0, max=max(len(second.index) - 1, 0))
            here = (token >= 0)[:, None]
            if len(second.index) == 0:
                routes = torch.full((len(token), second.index.shape[1]), -1, dtype=torch.int32, device=device)
                weight = torch.zeros(routes.shape, dtype=second.weight.dtype, device=device)
            else:
                routes = torch.where(here, second.index[row], -1)
                weight = torch.where(here, second.weight[row], 0)
            parts_index.append(routes)
            parts_weight.append(weight * self.weight[:, r, None])
        index, weight = torch.cat(parts_index, 1), torch.cat(parts_weight, 1)
        weight = torch.where(index >= 0, weight, 0)
        for r in range(1, index.shape[1]):  # R is at most 4, so this loop is short
            for earlier in range(r):
                same = (index[:, r] == index[:, earlier]) & (index[:, r] >= 0)
                weight[:, earlier] += torch.where(same, weight[:, r], 0)
                weight[:, r] = torch.where(same, 0, weight[:, r])
                index[:, r] = torch.where(same, -1, index[:, r])
        return Assignment(index, weight, self.offsets)
