"""What the types of packed tensors share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abbe.errors import InputError


def offsets_of(lengths: Tensor | Sequence[int]) -> Tensor:
    """[B] lengths to [B+1] offsets, int64 on the CPU."""
    lengths = torch.as_tensor(lengths, dtype=torch.int64)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def require(ok: bool, message: str, value: Tensor) -> None:  # noqa: FBT001
    """Raise InputError with `message` and what `value` is, unless `ok`."""
    if not ok:
        found = f"{value.dtype} {tuple(value.shape)} on {value.device}"
        if value.numel() and value.numel() <= 8:
            found += f" = {value.tolist()}"
        raise InputError(f"{message}; got {found}")


def require_offsets(offsets: Tensor, rows: int, slides: int | None = None) -> None:
    """Raise InputError unless `offsets` is int64 [B+1] on the CPU and rises from 0 to `rows`."""
    right = offsets.ndim == 1 and offsets.dtype == torch.int64 and offsets.device.type == "cpu" and len(offsets) > 0
    shape, of = ("[B+1]", "") if slides is None else (f"[{slides + 1}]", f" for {slides} slides")
    require(right and slides in (None, len(offsets) - 1), f"offsets must be int64 {shape} on the CPU{of}", offsets)
    require(int(offsets[0]) == 0 and int(offsets[-1]) == rows, f"offsets must run from 0 to {rows}", offsets)
    require(bool((offsets.diff() >= 0).all()), "offsets must not decrease", offsets)
