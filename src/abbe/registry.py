"""A folder is a registry: the file `foo.py` in it, holding one subclass of the base, is registered as `foo`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from abbe.errors import ConfigError, nearest

T = TypeVar("T")

_NOT_ENTRIES = {"base"}


def list_names(package: str) -> list[str]:
    """Names registered in `package` (a dotted module name), sorted. Imports the package, not its entries."""
    path = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(path))
    return sorted(name for name in names if not name.startswith("_") and name not in _NOT_ENTRIES)


def load(package: str, name: str, base: type[T]) -> type[T]:
    """The one subclass of `base` defined in `package.name`. ConfigError names the nearest entry where there is none."""
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


def checked_options(kind: str, name: str, entry: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a constructor, numpy's numbers as Python's: its signature is the schema.

    Raises ConfigError for an option it does not have, with the nearest it has, and for a value of another type.
    """
    known = [key for key in inspect.signature(entry.__init__).parameters if key != "self"]  # type: ignore[misc]
    hints = typing.get_type_hints(entry.__init__)  # type: ignore[misc]
    ready: dict[str, Any] = {}
    for option, given in options.items():
        value = given.item() if isinstance(given, np.generic) else given
        if option not in known:
            raise ConfigError(f"{kind} {name!r} has no option {option!r}. {nearest(option, known)}")
        if not _fits(hints.get(option, object), value):
            right = hints[option].__name__ if isinstance(hints[option], type) else str(hints[option])
            raise ConfigError(f"{kind} {name!r}: {option} must be {right}, got {value!r} ({type(value).__name__})")
        ready[option] = value
    return ready


def _fits(kind: Any, value: object) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(one, value) for one in typing.get_args(kind))
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)
