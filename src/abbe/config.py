"""Settings as dataclasses with strict checks: an unknown key or a value of the wrong type is an error.

Pydantic checks the values against the type annotations of the dataclass or constructor.
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
    """The fields of a settings dataclass as plain JSON values, including nested dataclasses; paths become strings."""
    return dict(json.loads(json.dumps(dataclasses.asdict(settings), default=_as_text)))


def from_dict(kind: type, values: Any, where: str, *, partial: bool = False) -> Any:
    """An instance of the dataclass `kind` from plain JSON values, including nested dataclasses.

    where: prefix of every error message.   partial: required fields may be missing, to be given on the command line.

    Raises ConfigError for an unknown key (with the nearest known key), a missing key, or a value of the wrong type.
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
    """An instance of the dataclass `kind` from the JSON file at `path`; required fields may be missing.

    Raises ConfigError for a file that cannot be read, an unknown key, or a value of the wrong type.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    return from_dict(kind, values, str(path), partial=True)


def only(kind: type, settings: Any) -> dict[str, Any]:
    """The fields of `settings` that `kind` defines, as plain JSON values; without the other options of a verb."""
    names = {item.name for item in dataclasses.fields(kind)}
    return {key: value for key, value in to_dict(settings).items() if key in names}


def to_flags(kind: type, settings: Any) -> list[str]:
    """Command-line arguments that reproduce `settings`: one option per field of `kind` that differs from its default.

    A nested field becomes `--outer.inner`. Arguments are not quoted; use `shlex.join`.
    """
    return _flags(kind, settings, None, "")


def check_options(owner: str, constructor: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against the annotations of a constructor; numpy scalars become Python numbers.

    Raises ConfigError for an unknown option (with the nearest known option) and for a value of the wrong type.
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
    """defaults: an instance that holds the default values, or None for the defaults of `kind`."""
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
    try:  # JSON mode accepts a string as a path and a list as a tuple, but not "3" as a number
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
    """Paths as valid UTF-8: bytes of a name that are not UTF-8 become \\xNN."""
    return os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, os.PathLike) else str(value)
