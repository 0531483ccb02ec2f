"""K means of similar patches: each slide is clustered on its own, nothing is learned."""

from __future__ import annotations

import torch

from abbe.condensers.base import Condenser, merge_groups
from abbe.errors import check_range
from abbe.ops.hashing import hash_rows
from abbe.ops.kmeans import kmeans, nearest_centre
from abbe.types import Condensed, TokenBatch


class KMeans(Condenser):
    """k-means on each slide: centres from at most `sample` patches, then every patch joins its nearest centre.

    steps: maximum number of Lloyd's steps.   sample: random patches that the centres are computed from (at least K).
    seed: of all random draws.
    A token is the mean of its patches. It is masked if no patch is nearest to its centre.
    """

    references = ("Least squares quantization in PCM (Lloyd 1982)", "k-means++ (Arthur & Vassilvitskii 2007)")
    small = {"tokens": 4}
    grid = {"tokens": [8, 16, 32, 64, 128]}
    merges = True

    def __init__(
        self, *, dim: int, tokens: int | float = 32, steps: int = 20, sample: int = 16_384, seed: int = 0
    ) -> None:
        super().__init__(dim=dim, tokens=tokens)
        check_range("kmeans", 0, steps=steps)
        check_range("kmeans", 1, sample=sample)
        self.steps, self.sample, self.seed = steps, sample, seed

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        counts = [min(k, n) for k, n in zip(budgets, batch.lengths.tolist(), strict=True)]
        groups = [self._cluster(slide, k) for slide, k in zip(batch, counts, strict=True)]
        return merge_groups(batch, torch.cat(groups), counts)

    def _cluster(self, slide: TokenBatch, k: int) -> torch.Tensor:
        """int64 [N]: the cluster of each patch of one slide; −1 for a masked one."""
        slide_id, valid = slide.slide_ids[0], slide.mask.nonzero().squeeze(1)
        group = torch.full((len(slide.features),), -1, dtype=torch.int64, device=slide.features.device)
        if len(valid) == 0:
            return group
        # Drawn at random, then sorted by row of the bag, so that centres do not depend on the order of the rows.
        origin = slide.origin[valid].cpu()
        drawn = hash_rows(self.seed, slide_id, origin).argsort(descending=True, stable=True)[: max(self.sample, k)]
        drawn = drawn[origin[drawn].argsort()].to(valid.device)
        generator = torch.Generator().manual_seed(int(hash_rows(self.seed, slide_id, torch.tensor([-1]))) & (2**63 - 1))
        rows = slide.features.detach()
        centres = kmeans(rows[valid[drawn]].float(), k, generator=generator, steps=self.steps)
        group[valid] = nearest_centre(rows[valid].float(), centres)
        return group
