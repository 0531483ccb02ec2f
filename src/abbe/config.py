"""A run's settings from a config.json: strict, so that a typing slip is refused and not ignored."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

import tyro

from abbe.errors import ConfigError, nearest


def read_config(kind: type, path: Path) -> Any:
    """The dataclass `kind` with the values of the JSON file at `path`; required ones that it lacks stay open.

    Raises ConfigError naming file, key and the nearest known key, or the value that does not fit.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    return build(kind, values, str(path))


def build(kind: type, values: Any, where: str) -> Any:
    """A dataclass from plain JSON values, nested ones included. `where` opens every error message."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected an object of settings, found {type(values).__name__}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind, include_extras=True)
    ready: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}. {nearest(key, fields)}")
        ready[key] = _value(hints[key], value, f"{where}, key {key!r}")
    for key, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in ready:
            ready[key] = tyro.MISSING  # the command line must supply it
    return kind(**ready)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _value(arguments[0], value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _value(option, value, where)
            except ConfigError:
                continue
    elif origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, where) for item in value)
    elif origin is typing.Literal and value in arguments:
        return value
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is types.NoneType and value is None:
        return None
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ConfigError(f"{where}: {value!r} does not fit {getattr(kind, '__name__', kind)}")
