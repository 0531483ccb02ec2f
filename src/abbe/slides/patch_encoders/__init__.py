"""Patch encoders by name: uint8 patches in, one feature row a patch out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from abbe.errors import ConfigError, nearest

PATCH_ENCODERS = ("texture",)
"""those that need neither weights nor an extra"""
FAMILIES = ("timm:MODEL", "lazyslide:NAME")


class PatchEncoder(Protocol):
    """uint8 [B, H, W, 3] (RGB) → float32 [B, D]. A patch's row does not depend on the patches beside it.

    One that computes on a GPU, or not in float32, also has `device: torch.device` and `dtype: torch.dtype`.
    """

    name: str
    """folder-safe: features lie in a folder named after it"""
    width: int
    patch_size: int | None
    """side it was made for, in pixels; None: any"""

    @property
    def version(self) -> int | str:
        """Changes when the same patch gives other features: features made with another are not taken as done."""

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]: ...


def create_patch_encoder(name: str, *, device: str = "auto", precision: str = "auto") -> PatchEncoder:
    """The patch encoder of that name: `texture`, `timm:MODEL` or `lazyslide:NAME`.

    device      "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"
    precision   "auto" (half precision on a GPU, float32 on a CPU), "float32", "float16", "bfloat16"

    `texture` computes on the CPU in float32 whatever they are. Raises ConfigError for an unknown name, an extra that is
    not installed, a model that cannot be had (gated, offline), and a device or precision that is not there.
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
