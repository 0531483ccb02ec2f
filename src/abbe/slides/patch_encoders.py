"""Patch encoders by name: uint8 patches in, one feature row a patch out."""

from __future__ import annotations

from typing import Any


def create_patch_encoder(name: str) -> Any:
    """The patch encoder of that name."""
    from abbe.slides.texture import TextureEncoder

    return TextureEncoder()
