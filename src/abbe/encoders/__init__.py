"""Slide encoders: every patch sees the others before a condenser chooses. One file an encoder; its name is the file's.

encoder = create_encoder("longnet", dim=768)
encoded = encoder(batch)
"""

from __future__ import annotations

from typing import Any

from abbe import registry
from abbe.config import check_options
from abbe.encoders.base import Between, Encoder

__all__ = ["Between", "Encoder", "create_encoder", "encoder_class", "list_encoders"]


def list_encoders() -> list[str]:
    """The registered names, sorted."""
    return registry.list_names(__name__)


def encoder_class(name: str) -> type[Encoder]:
    """The class registered as `name`. ConfigError suggests the nearest name where there is none."""
    return registry.load(__name__, name, Encoder)


def create_encoder(name: str, *, dim: int, **options: Any) -> Encoder:
    """An encoder by name. `dim` is the width of the features; options are the class's own keyword arguments.

    Raises ConfigError for an unknown name or option, with the nearest known one, and for a value of another type.
    """
    cls = encoder_class(name)
    return cls(**check_options(f"encoder {name!r}", cls.__init__, {"dim": dim, **options}))
