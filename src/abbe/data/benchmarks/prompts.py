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
    """names: {class: its names in words}.  templates: sentences in which CLASSNAME stands for a name."""

    names: dict[str, tuple[str, ...]]
    templates: tuple[str, ...] = (CLASSNAME,)

    def texts(self, name: str) -> list[str]:
        """Every template with every name of one class."""
        return [template.replace(CLASSNAME, word) for word in self.names[name] for template in self.templates]


def read_conch_prompts(path: str | Path, *, group: str | None = None) -> Prompts:
    """CONCH's prompt json: {group: {"classnames": {class: [names]}, "templates": [sentences with CLASSNAME]}}.

    group: which set of prompts; may be left out where the file has one.
    Raises TableError naming file, key and value: an unknown group, a class without names, a template without CLASSNAME.
    """
    value, _ = read_json(path)
    if not isinstance(value, dict) or not value:
        raise TableError(f"{path}: expected an object of prompt sets, found {str(value)[:80]}")
    if group is None and len(value) > 1:
        raise TableError(f"{path}: holds {len(value)} prompt sets; give one of {', '.join(value)} as group")
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
    """{class: [names]} checked. Raises TableError opening with `where`."""
    if not isinstance(value, dict) or not value:
        raise TableError(f"{where}: expected an object of classes and their names, found {str(value)[:80]}")
    for key in value:
        if not isinstance(key, str):
            raise TableError(f"{where}: class {key!r} is a {type(key).__name__}; put it in quotes")
    return {key: texts(f"{where}, class {key!r}", names) for key, names in value.items()}


def texts(where: str, value: Any) -> tuple[str, ...]:
    """A list of texts that is not empty. Raises TableError opening with `where`."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise TableError(f"{where}: expected a list of texts, found {str(value)[:80]}")
    return tuple(value)
