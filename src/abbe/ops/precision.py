"""Full precision inside autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def exact_float32(device_type: str) -> AbstractContextManager[object]:
    """Autocast disabled on `device_type`; nothing on the meta device, which torch.autocast refuses even to disable."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)
