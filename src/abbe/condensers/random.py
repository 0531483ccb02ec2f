"""K patches by lot: the baseline every learned selection must beat."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from abbe.condensers.base import Condenser, SelectStream, Stream, select
from abbe.types import Condensed, TokenBatch


class Random(Condenser):
    """Keeps the K patches with the smallest hash of (seed, slide_id, row).

    The row is the patch's row in its bag (`origin`), so a slide alone, in a batch, streamed or permuted keeps the same
    patches.
    """

    small = {"tokens": 4}
    grid = {"tokens": [8, 16, 32, 64, 128]}
    selects = True
    streams = True

    def __init__(self, *, dim: int, tokens: int | float = 32, seed: int = 0) -> None:
        super().__init__(dim=dim, tokens=tokens)
        self.seed = seed

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        kept = [
            self.lots(slide).topk(min(k, len(slide.features))).indices for slide, k in zip(batch, budgets, strict=True)
        ]
        return select(batch, [rows.sort().values for rows in kept])

    def lots(self, slide: TokenBatch) -> Tensor:
        """int64 [N]: a lot for each patch of one slide, on the CPU; the largest are kept."""
        return hash_rows(self.seed, slide.slide_ids[0], slide.origin)

    def stream(self, slide_id: str) -> Stream:
        return SelectStream(self, slide_id, lambda chunk: self.lots(chunk).to(chunk.features.device))


def hash_rows(seed: int, slide_id: str, rows_N: Tensor) -> Tensor:
    """int64 [N] on the CPU: SplitMix64 of each row (Steele, Lea & Flood 2014), started from a hash of seed and slide.

    Complemented and shifted to signed numbers, so that the smallest hash is the largest lot.
    """
    digest = hashlib.sha256(f"{seed}\0{slide_id}".encode()).digest()
    rows = rows_N.cpu().numpy()
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = np.uint64(int.from_bytes(digest[:8], "little")) + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        lots = ~((z ^ (z >> np.uint64(31))) ^ np.uint64(1 << 63))
    return torch.from_numpy(lots.view(np.int64))
