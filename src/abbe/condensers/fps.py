"""K patches that differ as much as possible: they cover what a slide shows, however rare."""

from __future__ import annotations

from abbe.condensers.base import Condenser, select
from abbe.ops.fps import farthest_points
from abbe.types import Condensed, TokenBatch


class FarthestPoints(Condenser):
    """Farthest-point sampling by cosine in feature space, starting at the patch nearest the mean."""

    references = ("Clustering to minimize the maximum intercluster distance (Gonzalez 1985)",)
    small = {"tokens": 4}
    grid = {"tokens": [8, 16, 32, 64, 128]}
    selects = True

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        kept = [
            farthest_points(slide.features.detach().float(), budget).sort().values
            for slide, budget in zip(batch, budgets, strict=True)
        ]
        return select(batch, kept)
