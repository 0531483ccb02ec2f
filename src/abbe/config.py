"""Settings as dataclasses, checked strictly: an unknown key or a value of the wrong type is an error.

Pydantic checks the values; the annotations of the dataclass or constructor are the schema.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from pydantic import ConfigDict, TypeAdapter, ValidationError

from abbe.errors import ConfigError, nearest

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def to_dict(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass as plain JSON values, nested ones included; paths become strings."""
    return dict(json.loads(json.dumps(dataclasses.asdict(settings), default=_as_text)))


def from_dict(kind: type, values: Any, where: str, *, partial: bool = False) -> Any:
    """The dataclass `kind` from plain JSON values, nested dataclasses included.

    where: opens every error message.   partial: required fields may be absent; the command line must supply them.

    Raises ConfigError naming the key and the nearest known key, or the value that does not fit.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected an object of settings, found {type(values).__name__}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind, include_extras=True)
    ready: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}. {nearest(key, fields)}")
        inside = f"{where}, key {key!r}"
        nested = hints[key] if dataclasses.is_dataclass(hints[key]) else None
        ready[key] = (
            from_dict(nested, value, inside, partial=partial) if nested else _json_value(hints[key], value, inside)
        )
    for key, item in fields.items():
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and key not in ready:
            if not partial:
                raise ConfigError(f"{where}: key {key!r} is missing")
            ready[key] = tyro.MISSING
    return kind(**ready)


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
    return from_dict(kind, values, str(path), partial=True)


def only(kind: type, settings: Any) -> dict[str, Any]:
    """The fields that `settings` has from `kind`, as plain JSON values; a verb's own options are left out."""
    names = {item.name for item in dataclasses.fields(kind)}
    return {key: value for key, value in to_dict(settings).items() if key in names}


def to_flags(kind: type, settings: Any) -> list[str]:
    """The words of the command line that gives `settings`: options for the fields of `kind` that differ from defaults.

    A nested field gives `--outer.inner`. Words are not quoted; `shlex.join` does that.
    """
    return _flags(kind, settings, None, "")


def check_options(owner: str, constructor: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a constructor, checked against its annotations; numpy scalars become Python numbers.

    Raises ConfigError for an option it does not have, with the nearest it has, and for a value of another type.
    """
    known = [key for key in inspect.signature(constructor).parameters if key != "self"]
    hints = typing.get_type_hints(constructor)
    ready: dict[str, Any] = {}
    for option, given in options.items():
        value = given.item() if isinstance(given, np.generic) else given
        if option not in known:
            raise ConfigError(f"{owner} has no option {option!r}. {nearest(option, known)}")
        hint = hints.get(option, Any)
        try:
            ready[option] = _adapter(hint).validate_python(value)
        except ValidationError as error:
            raise ConfigError(
                f"{owner}: {option} must be {_shown(hint)}, got {value!r} ({type(value).__name__})"
            ) from error
    return ready


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def _flags(kind: type, settings: Any, defaults: Any, prefix: str) -> list[str]:
    """defaults: an instance whose fields are the defaults, or None for those of `kind`."""
    words: list[str] = []
    for item in dataclasses.fields(kind):
        value = getattr(settings, item.name)
        default = _default(item) if defaults is None else getattr(defaults, item.name)
        if value == default:
            continue
        option = item.name.replace("_", "-")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            same_kind = type(default) is type(value)
            words += _flags(type(value), value, default if same_kind else None, f"{prefix}{option}.")
        elif isinstance(value, bool):
            words.append(f"--{prefix}{option}" if value else f"--{prefix}no-{option}")
        else:
            words += [f"--{prefix}{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def _json_value(hint: Any, value: Any, where: str) -> Any:
    try:  # as JSON: a string may be a path, and a list a tuple, but "3" is not a number
        return _adapter(hint).validate_json(json.dumps(value))
    except ValidationError as error:
        raise ConfigError(f"{where}: expected {_shown(hint)}, got {value!r}") from error


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=_STRICT)


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace("pathlib.", "")


def _as_text(value: Any) -> str:
    """Paths as text that JSON can hold: bytes of a name that are not UTF-8 become \\xNN."""
    return os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, os.PathLike) else str(value)
