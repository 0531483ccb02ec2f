"""A package is a registry: a module `foo.py` that defines one subclass of the base class is registered as `foo`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TypeVar

from abbe.errors import ConfigError, nearest

T = TypeVar("T")

_NOT_ENTRIES = {"base", "streaming"}


def list_names(package: str) -> list[str]:
    """Sorted names registered in `package` (a dotted module name). Imports the package but not its entries."""
    path = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(path))
    return sorted(name for name in names if not name.startswith("_") and name not in _NOT_ENTRIES)


def load(package: str, name: str, base: type[T]) -> type[T]:
    """The subclass of `base` defined in `package.name`. Raises ConfigError if unknown or ambiguous."""
    if name not in list_names(package):
        kind = package.rpartition(".")[2]
        raise ConfigError(f"unknown name {name!r} in {kind}. {nearest(name, list_names(package))}")
    module = importlib.import_module(f"{package}.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(f"{module.__file__}: expected exactly one {base.__name__} class, found {len(found)}")
    return found[0]
