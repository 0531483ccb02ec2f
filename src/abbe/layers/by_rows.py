"""Row-wise functions applied to a few thousand rows at a time, so that intermediate results stay small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ROWS = 8192  # rows per step


def by_rows(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs) for a row-wise function; in steps if gradients are disabled."""
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
    """x + function(*inputs) for a row-wise function; in steps and in place (x is changed) if gradients are disabled."""
    if torch.is_grad_enabled():
        return x + function(*inputs)
    for start in range(0, len(x), _ROWS):
        x[start : start + _ROWS] += function(*(y[start : start + _ROWS] for y in inputs))
    return x
