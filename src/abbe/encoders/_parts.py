"""Parts that slide encoders, scorers and denoisers share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 8192  # rows a step where no gradient is kept: what lies between two products stays small


class Norm(nn.LayerNorm):
    """LayerNorm in float32 whatever the input's type, which it keeps."""

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (None if p is None else p.to(exact) for p in (self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x.to(exact), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class MLP(nn.Sequential):
    """width → hidden → width, GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def by_rows(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs) for a function of rows, in steps where no gradient is kept."""
    n = len(inputs[0])
    if torch.is_grad_enabled() or n <= _ROWS:
        return function(*inputs)
    out: Tensor | None = None
    for start in range(0, n, _ROWS):
        part = function(*(x[start : start + _ROWS] for x in inputs))
        out = part.new_empty(n, *part.shape[1:]) if out is None else out
        out[start : start + _ROWS] = part
    assert out is not None
    return out


def add_by_rows(x: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """x + function(*inputs); where no gradient is kept, in x itself and in steps, so x must be the caller's own."""
    if torch.is_grad_enabled():
        return x + function(*inputs)
    for start in range(0, len(x), _ROWS):
        x[start : start + _ROWS] += function(*(y[start : start + _ROWS] for y in inputs))
    return x
