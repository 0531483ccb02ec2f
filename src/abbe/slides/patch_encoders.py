"""Patch encoders by name: uint8 patches in, one feature row a patch out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from abbe.errors import ConfigError, nearest

PATCH_ENCODERS = ("texture",)


class PatchEncoder(Protocol):
    """uint8 [B, H, W, 3] (RGB) → float32 [B, D]. A patch's row does not depend on the patches beside it."""

    name: str
    width: int
    version: int
    """raised when the same patch gives other features: features made with another one are not taken as done"""
    patch_size: int | None
    """side it was made for, in pixels; None: any"""

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]: ...


def create_patch_encoder(name: str) -> PatchEncoder:
    """The patch encoder of that name. ConfigError suggests the nearest where there is none."""
    if name == "texture":
        from abbe.slides.texture import TextureEncoder

        return TextureEncoder()
    raise ConfigError(f"unknown patch encoder {name!r}. {nearest(name, PATCH_ENCODERS)}")
