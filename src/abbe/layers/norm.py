"""LayerNorm computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norm(nn.LayerNorm):
    """LayerNorm that computes in float32 or better and returns the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (None if p is None else p.to(exact) for p in (self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x.to(exact), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
