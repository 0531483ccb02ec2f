"""Where a patch encoder with weights computes, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from abbe.errors import ConfigError, nearest

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(device: str, precision: str) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the two options of `create_patch_encoder`.

    Raises ConfigError for an unknown or unavailable device, an unknown precision, and float16 on a CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    unknown = ConfigError(f"--device is {device!r}; it must be auto, cpu, cuda or cuda:N")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise unknown from error
    if found.type not in ("cpu", "cuda"):
        raise unknown
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"--device is {device!r}, but {count} CUDA devices are available; use cpu or auto")
    if precision == "auto":
        return found, torch.float16 if found.type == "cuda" else torch.float32
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision is {precision!r}. {nearest(precision, ('auto', *PRECISIONS))}")
    if found.type == "cpu" and precision == "float16":
        raise ConfigError("--precision is float16, which is slower than float32 on a CPU; use float32 or bfloat16")
    return found, PRECISIONS[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Matrix products in `dtype`; operations that need it stay in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
