"""One file per method. The file's name is the method's name; `base.py` holds the contract.

condenser = create_condenser("tcssa", dim=768, tokens=32)
condensed = condenser(batch)
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from abbe import registry

if TYPE_CHECKING:  # names are listed without importing torch
    from abbe.condensers.base import Condenser

__all__ = ["condenser_class", "create_condenser", "list_condensers", "markdown_table"]


def list_condensers() -> list[str]:
    """The registered names, sorted."""
    return registry.list_names(__name__)


def condenser_class(name: str) -> type[Condenser]:
    """The class registered as `name`. Raises ConfigError for an unknown name, with the nearest known one."""
    from abbe.condensers.base import Condenser

    return registry.load(__name__, name, Condenser)


def create_condenser(name: str, *, dim: int, **options: Any) -> Condenser:
    """A condenser by name. dim: width of the features.   options: the class's own keyword arguments.

    Raises ConfigError for an unknown name or option, with the nearest known one, and for a value of another type.
    """
    from abbe.config import check_options

    cls = condenser_class(name)
    return cls(**check_options(f"condenser {name!r}", cls.__init__, {"dim": dim, **options}))


def markdown_table() -> str:
    """Every registered condenser with its traits and sources, for docs/methods/baselines.md."""
    columns = ("method", "keeps", "learns", "streams", "needs positions", "budget", "description", "source")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name in list_condensers():
        cls = condenser_class(name)
        kind = "means" if cls.merges else "patches, changed" if cls.changes_features else "patches"
        flags = ["yes" if flag else "" for flag in (cls.trainable, cls.streams, cls.needs_positions)]
        budget = "fixed by weights" if cls.fixed_budget else "ignored" if cls.keeps_everything else "any, per call"
        description = (inspect.getdoc(cls) or "").partition("\n")[0]
        for check, reason in cls.expected_failures.items():
            description += f" Declared exception, `{check}`: {reason}."
        cells = (f"`{name}`", kind, *flags, budget, description, "; ".join(cls.references))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
