"""Similar neighbours are merged, round after round, until K tokens are left."""

from __future__ import annotations

import torch
from torch import Tensor

from abbe.condensers.base import Condenser, merge_groups
from abbe.errors import check_range
from abbe.ops.hilbert import hilbert_index
from abbe.ops.merge import merge_to
from abbe.types import Condensed, TokenBatch


class Merge(Condenser):
    """Bipartite matching by cosine in windows along a Hilbert curve of the positions; means weighted by size.

    window: number of tokens among which a token's partner is searched.
    Without positions, windows follow the order of the bag.
    """

    references = ("Token Merging: Your ViT But Faster (2023)",)
    small = {"tokens": 4}
    grid = {"tokens": [8, 16, 32, 64, 128]}
    merges = True

    def __init__(self, *, dim: int, tokens: int | float = 32, window: int = 1024) -> None:
        super().__init__(dim=dim, tokens=tokens)
        check_range("merge", 2, window=window)
        self.window = window

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        counts = [min(k, n) for k, n in zip(budgets, batch.lengths.tolist(), strict=True)]
        groups = [self._merge(slide, k) for slide, k in zip(batch, counts, strict=True)]
        return merge_groups(batch, torch.cat(groups), counts, placed=True)

    def _merge(self, slide: TokenBatch, k: int) -> Tensor:
        """int64 [N]: the token each patch of one slide ends in; −1 for a masked one."""
        # Sort by row of the bag first, so that ties on the curve do not depend on the order of the rows.
        order = slide.origin.argsort()
        if slide.positions is not None:
            order = order[hilbert_index(slide.positions[order]).argsort(stable=True)]
        order = order[slide.mask[order]]
        group = torch.full((len(slide.features),), -1, dtype=torch.int64, device=slide.features.device)
        group[order] = merge_to(slide.features.detach()[order].float(), slide.mass[order], k, window=self.window)
        return group
