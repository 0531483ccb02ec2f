"""Random numbers that depend only on a seed, a slide and a row."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def hash_rows(seed: int, slide_id: str, rows_N: Tensor) -> Tensor:
    """int64 [N] on the CPU: SplitMix64 of each row (Steele, Lea & Flood 2014), started from a hash of seed and slide.

    The unsigned hash is complemented and shifted to a signed number, so the smallest hash gives the largest number.
    """
    digest = hashlib.sha256(f"{seed}\0{slide_id}".encode()).digest()
    rows = rows_N.cpu().numpy()
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        z = np.uint64(int.from_bytes(digest[:8], "little")) + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys = ~((z ^ (z >> np.uint64(31))) ^ np.uint64(1 << 63))
    return torch.from_numpy(keys.view(np.int64))
