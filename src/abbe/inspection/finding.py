"""What was found out about one path, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abbe.errors import StoreError
from abbe.store import commit

_STATES = {
    "torn": "its size is not the one that was written: it was cut short; make it again",
    "altered": "its bytes are not the ones that were written; make it again, or remove its sidecar if you changed it",
}


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """What files do not say, and how a slide's patches are counted."""

    mpp: float = 0.5
    """microns a pixel at which the patches of a slide are counted"""
    patch_size: int = 256
    """side of a patch in pixels at that mpp"""
    override_mpp: float | None = None
    """microns a pixel at level 0, for slides and feature files that do not say it"""
    patch_size_level0: float | None = None
    """side of a patch in level-0 pixels, for feature files that do not say it"""
    label: str | None = None
    """column of a labels table whose values are counted (default: label, where there is one)"""
    stride_level0: float | None = None
    """step between patches in level-0 pixels, where they overlap and a feature file does not say it"""
    encoder: str | None = None
    """patch encoder, where a store holds several"""


@dataclass(frozen=True)
class Finding:
    """One path. facts: what it is, in order.   problems: each a sentence that ends in its remedy.

    readable: whether Abbe can use it at all; a readable thing may still have problems.
    """

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    readable: bool = True

    def lines(self) -> str:
        """The finding for a person."""
        out = [f"{self.path}: {self.kind}{'' if self.readable else ' (not usable)'}"]
        width = max((len(name) for name in self.facts), default=0)
        out += [f"  {name:<{width}}  {_plain(value)}" for name, value in self.facts.items()]
        out += [f"  ! {problem}" for problem in self.problems]
        return "\n".join(out)


def signed(path: Path) -> tuple[dict[str, Any], list[str]]:
    """(hash and size of a file, and whether its sidecar agrees; what is wrong with that)."""
    facts: dict[str, Any] = {"size": f"{path.stat().st_size:,} bytes", "sha256": commit.file_sha256(path)}
    try:
        state, sidecar = commit.state(path), commit.read_sidecar(path)
    except StoreError as error:
        return facts, [str(error)]
    if sidecar is None:
        return facts, []
    facts["written by"] = f"abbe {sidecar['made_with']['abbe']} as {sidecar['format']} version {sidecar['version']}"
    return facts, [_STATES[state]] if state in _STATES else []


def _plain(value: Any) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list) and all(isinstance(item, int | float) for item in value):
        return " × ".join(f"{item:g}" for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name or '(empty)'}: {_plain(item)}" for name, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
