"""Order of points along a Hilbert curve, so that neighbours in a list are neighbours in the plane."""

from __future__ import annotations

import torch
from torch import Tensor


def hilbert_index(positions: Tensor, bits: int = 16) -> Tensor:
    """int64 [N]: distance along a Hilbert curve of order `bits` over the bounding box of positions [N, 2].

    The longer side of the box is divided into 2^bits steps; points closer than a step may share an index. Source:
    Hilbert 1891, computed bit by bit: each quadrant is a rotated copy of the curve (Skilling 2004).
    Reference: `abbe.ops.naive.hilbert_curve`.
    """
    low = positions.double() - positions.double().min(0).values
    side = low.max().clamp_min(1e-9)
    x, y = (low / side * (2**bits - 1)).round().long().unbind(1)
    index = torch.zeros_like(x)
    for bit in reversed(range(bits)):
        half = 1 << bit
        right, up = (x & half) > 0, (y & half) > 0
        index += half * half * ((3 * right.long()) ^ up.long())
        # In the lower quadrants x and y are swapped; the lower right one is also mirrored.
        flip = right & ~up
        x, y = torch.where(flip, half - 1 - x, x), torch.where(flip, half - 1 - y, y)
        x, y = torch.where(up, x, y), torch.where(up, y, x)
        x, y = x & (half - 1), y & (half - 1)
    return index
