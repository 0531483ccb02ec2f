"""Two-dimensional rotary positions: x rotates one half of a head's channels, y the other.

Angles are position × θ^(−i/n) for the n = C/4 frequencies of an axis, in float32; channel pairs are interleaved:
(0, 1), (2, 3), … Positions may be continuous. The product of a rotated query and a rotated key depends only on the
difference of their positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abbe.errors import InputError


def rotations(positions: Tensor, head_width: int, *, theta: float = 100.0) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [T, C/2] float32: the rotation of every channel pair at positions [T, 2].

    Raises InputError unless the head width C is a multiple of 4. Reference: `abbe.ops.naive.rope2d`.
    """
    if head_width % 4:
        raise InputError(f"rope2d: the head width must be divisible by 4 (two axes of channel pairs), got {head_width}")
    n = head_width // 4
    frequencies = theta ** (-torch.arange(n, dtype=torch.float32, device=positions.device) / n)
    angles = (positions.float()[:, :, None] * frequencies).flatten(1)
    return angles.cos(), angles.sin()


def rope2d(x_THC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, C] rotated by the `rotations` of its T tokens, in the dtype of x. Computed in float32 or better."""
    x = x_THC if x_THC.dtype == torch.float64 else x_THC.float()
    even, odd = x[..., 0::2], x[..., 1::2]
    c, s = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2).to(x_THC.dtype)
