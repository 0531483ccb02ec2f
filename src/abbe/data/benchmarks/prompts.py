"""Class names and sentence templates for zero-shot classification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abbe.data.textfiles import read_json
from abbe.errors import TableError, nearest

CLASSNAME = "CLASSNAME"


@dataclass(frozen=True)
class Prompts:
    """Prompts for zero-shot classification.

    names: {class: its names in words}.  templates: sentences with the placeholder CLASSNAME.
    """

    names: dict[str, tuple[str, ...]]
    templates: tuple[str, ...] = (CLASSNAME,)

    def texts(self, name: str) -> list[str]:
        """All templates filled with all names of one class."""
        return [template.replace(CLASSNAME, word) for word in self.names[name] for template in self.templates]


def read_conch_prompts(path: str | Path, *, group: str | None = None) -> Prompts:
    """Read CONCH's prompt json: {group: {"classnames": {class: [names]}, "templates": [sentences with CLASSNAME]}}.

    group: the prompt set to read; optional if the file has only one.
    Raises TableError with file, key and value for an unknown group, a class without names, or a template without
    CLASSNAME.
    """
    value, _ = read_json(path)
    if not isinstance(value, dict) or not value:
        raise TableError(f"{path}: expected an object of prompt sets, found {str(value)[:80]}")
    if group is None and len(value) > 1:
        raise TableError(f"{path}: contains {len(value)} prompt sets; set group to one of {', '.join(value)}")
    chosen = next(iter(value)) if group is None else group
    if chosen not in value:
        raise TableError(f"{path}: no prompt set {chosen!r}. {nearest(chosen, value)}")
    prompts = value[chosen]
    if not isinstance(prompts, dict) or set(prompts) != {"classnames", "templates"}:
        raise TableError(
            f"{path}, set {chosen!r}: expected the keys classnames and templates, found {str(prompts)[:80]}"
        )
    templates = texts(f"{path}, set {chosen!r}, key 'templates'", prompts["templates"])
    for template in templates:
        if CLASSNAME not in template:
            raise TableError(f"{path}, set {chosen!r}: template {template!r} does not contain {CLASSNAME}")
    return Prompts(class_names(f"{path}, set {chosen!r}, key 'classnames'", prompts["classnames"]), templates)


def class_names(where: str, value: Any) -> dict[str, tuple[str, ...]]:
    """Check {class: [names]}. Raises TableError with a message that starts with `where`."""
    if not isinstance(value, dict) or not value:
        raise TableError(f"{where}: expected an object of the form {{class: [names]}}, found {str(value)[:80]}")
    for key in value:
        if not isinstance(key, str):
            raise TableError(f"{where}: class {key!r} is a {type(key).__name__}; put it in quotes")
    return {key: texts(f"{where}, class {key!r}", names) for key, names in value.items()}


def texts(where: str, value: Any) -> tuple[str, ...]:
    """Check a non-empty list of strings. Raises TableError with a message that starts with `where`."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise TableError(f"{where}: expected a non-empty list of strings, found {str(value)[:80]}")
    return tuple(value)
