"""Patch encoders by name: uint8 patches in, one feature row per patch out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from abbe.errors import ConfigError, nearest

PATCH_ENCODERS = ("texture",)
"""encoders that need no weights and no extra"""
FAMILIES = ("timm:MODEL", "lazyslide:NAME")


class PatchEncoder(Protocol):
    """uint8 [B, H, W, 3] (RGB) → float32 [B, D]. The row of a patch does not depend on the rest of the batch.

    An encoder that computes on a GPU or not in float32 also has `device: torch.device` and `dtype: torch.dtype`.
    """

    name: str
    """folder-safe: the folder of the features is named after it"""
    width: int
    patch_size: int | None
    """required side of a patch in pixels; None: any"""

    @property
    def version(self) -> int | str:
        """Changes whenever features change: features of another version are not taken as done."""

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]: ...


def create_patch_encoder(name: str, *, device: str = "auto", precision: str = "auto") -> PatchEncoder:
    """The patch encoder called `texture`, `timm:MODEL` or `lazyslide:NAME`.

    device      "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"
    precision   "auto" (float16 on a GPU, float32 on a CPU), "float32", "float16", "bfloat16"

    `texture` ignores both and computes on the CPU in float32. Raises ConfigError for an unknown name, a missing extra,
    a model that is not available (gated, offline), and an unavailable device or precision.
    """
    family, _, model = name.partition(":")
    if name == "texture":
        from abbe.slides.patch_encoders.texture import TextureEncoder

        return TextureEncoder()
    if family == "timm" and model:
        from abbe.slides.patch_encoders.timm import TimmEncoder

        return TimmEncoder(model, device=device, precision=precision)
    if family == "lazyslide" and model:
        from abbe.slides.patch_encoders.lazyslide import LazyslideEncoder

        return LazyslideEncoder(model, device=device, precision=precision)
    if family in ("timm", "lazyslide"):
        example = "timm:vit_small_patch16_224" if family == "timm" else "lazyslide:uni"
        raise ConfigError(f"patch encoder {name!r} names no model; write for example {example!r}")
    raise ConfigError(f"unknown patch encoder {name!r}. {nearest(name, (*PATCH_ENCODERS, *FAMILIES))}")
