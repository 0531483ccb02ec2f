"""Slide encoders: each patch reads the others before a condenser chooses. One file per encoder, named after it.

encoder = create_encoder("longnet", dim=768)
encoded = encoder(batch)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abbe import registry

if TYPE_CHECKING:  # names are listed without importing torch
    from abbe.encoders.base import Encoder

__all__ = ["create_encoder", "list_encoders"]


def list_encoders() -> list[str]:
    """The registered names, sorted."""
    return registry.list_names(__name__)


def create_encoder(name: str, *, dim: int, **options: Any) -> Encoder:
    """An encoder by name. dim: width of the features.   options: the class's own keyword arguments.

    Raises ConfigError for an unknown name or option, with the nearest known one, and for a value of another type.
    """
    from abbe.config import check_options
    from abbe.encoders.base import Encoder

    cls = registry.load(__name__, name, Encoder)
    return cls(**check_options(f"encoder {name!r}", cls.__init__, {"dim": dim, **options}))
