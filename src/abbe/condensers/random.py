"""K patches by lot: the baseline every learned selection must beat."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from abbe.condensers.base import Condenser, select
from abbe.types import Condensed, TokenBatch


class Random(Condenser):
    """Keeps the K patches with the smallest hash of (seed, slide_id, row).

    The row is the patch's row in its bag (`origin`), so a slide alone, in a batch, streamed or permuted keeps the same
    patches.
    """

    small = {"tokens": 4}
    grid = {"tokens": [8, 16, 32, 64, 128]}
    selects = True

    def __init__(self, *, dim: int, tokens: int | float = 32, seed: int = 0) -> None:
        super().__init__(dim=dim, tokens=tokens)
        self.seed = seed

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        kept = []
        for slide, budget in zip(batch, budgets, strict=True):
            lot = _hash_rows(self.seed, slide.slide_ids[0], slide.origin.cpu().numpy())
            best = np.argsort(lot, kind="stable")[:budget]
            kept.append(torch.from_numpy(np.sort(best)))
        return select(batch, kept)


def _hash_rows(seed: int, slide_id: str, rows: np.ndarray) -> np.ndarray:
    """uint64 [N]: SplitMix64 of each row (Steele, Lea & Flood 2014), started from a hash of seed and slide."""
    digest = hashlib.sha256(f"{seed}\0{slide_id}".encode()).digest()
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = np.uint64(int.from_bytes(digest[:8], "little")) + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
