"""One file a method. The file's name is the method's name; `base.py` holds the contract.

condenser = create_condenser("tcssa", dim=768, tokens=32)
condensed = condenser(batch)
"""

from __future__ import annotations

import inspect
from typing import Any

from abbe import registry
from abbe.condensers.base import Condenser
from abbe.errors import ConfigError, nearest

__all__ = ["Condenser", "condenser_class", "create_condenser", "list_condensers"]


def list_condensers() -> list[str]:
    """The registered names, sorted."""
    return registry.list_names(__name__)


def condenser_class(name: str) -> type[Condenser]:
    """The class registered as `name`. ConfigError suggests the nearest name where there is none."""
    return registry.load(__name__, name, Condenser)


def create_condenser(name: str, *, dim: int, **options: Any) -> Condenser:
    """A condenser by name. `dim` is the width of the features; options are the class's own keyword arguments.

    Raises ConfigError for an unknown name or option, with the nearest known one.
    """
    cls = condenser_class(name)
    known = [key for key in inspect.signature(cls).parameters if key != "dim"]
    for option in options:
        if option not in known:
            raise ConfigError(f"condenser {name!r} has no option {option!r}. {nearest(option, known)}")
    return cls(dim=dim, **options)
