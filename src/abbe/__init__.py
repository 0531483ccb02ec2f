"""Abbe condenses a gigapixel pathology slide into about 32 tokens, and predicts from them.

The public names are loaded when they are first used, so that `import abbe` and `abbe --help` cost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from abbe.version import __version__

if TYPE_CHECKING:
    from abbe import plot
    from abbe.condensers import create_condenser, list_condensers
    from abbe.condensers.base import Condenser
    from abbe.errors import AbbeError
    from abbe.models.hub import load
    from abbe.slides.patch_encoders import create_patch_encoder
    from abbe.store.bags import read_bag, write_bag
    from abbe.types import Assignment, Bag, Condensed, TokenBatch

_HOME = {
    "AbbeError": "abbe.errors",
    "Assignment": "abbe.types",
    "Bag": "abbe.types",
    "Condensed": "abbe.types",
    "Condenser": "abbe.condensers.base",
    "TokenBatch": "abbe.types",
    "create_condenser": "abbe.condensers",
    "create_patch_encoder": "abbe.slides.patch_encoders",
    "list_condensers": "abbe.condensers",
    "load": "abbe.models.hub",
    "plot": "abbe.plot",
    "read_bag": "abbe.store.bags",
    "write_bag": "abbe.store.bags",
}

__all__ = [
    "AbbeError",
    "Assignment",
    "Bag",
    "Condensed",
    "Condenser",
    "TokenBatch",
    "__version__",
    "create_condenser",
    "create_patch_encoder",
    "list_condensers",
    "load",
    "plot",
    "read_bag",
    "write_bag",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'abbe' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    return module if module.__name__ == f"abbe.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
