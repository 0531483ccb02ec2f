"""LayerNorm computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abbe.ops.precision import exact_float32


class Norm(nn.LayerNorm):
    """LayerNorm that computes in float32 or better and returns the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (None if p is None else p.to(exact) for p in (self.weight, self.bias))
        with exact_float32(x.device.type):
            return F.layer_norm(x.to(exact), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
