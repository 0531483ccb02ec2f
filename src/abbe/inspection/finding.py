"""Result and options of an inspection."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abbe.errors import StoreError
from abbe.store import commit

_STATES = {
    "torn": "the size differs from the recorded one, so the file was cut short; create it again",
    "altered": "the hash differs from the recorded one; create the file again, or remove its sidecar if you changed it",
}


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """Values that files do not state, and the size of the patches to count."""

    mpp: float = 0.5
    """microns per pixel at which the patches of a slide are counted"""
    patch_size: int = 256
    """patch side in pixels at that mpp"""
    override_mpp: float | None = None
    """microns per pixel at level 0, for slides and feature files that do not state it"""
    patch_size_level0: float | None = None
    """patch side in level-0 pixels, for feature files that do not state it"""
    label: str | None = None
    """column of a labels table whose values are counted (default: label, if it exists)"""
    stride_level0: float | None = None
    """step between overlapping patches in level-0 pixels, for feature files that do not state it"""
    encoder: str | None = None
    """patch encoder to read, if a store contains several"""


@dataclass(frozen=True)
class Finding:
    """Result for one path.

    facts: properties in display order.   problems: sentences that end with a remedy.
    readable: whether Abbe can use the file; a readable file may still have problems.
    """

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    readable: bool = True

    def lines(self) -> str:
        """Human-readable text."""
        out = [f"{self.path}: {self.kind}{'' if self.readable else ' (not usable)'}"]
        width = max((len(name) for name in self.facts), default=0)
        out += [f"  {name:<{width}}  {_plain(value)}" for name, value in self.facts.items()]
        out += [f"  ! {problem}" for problem in self.problems]
        return "\n".join(out)


def signed(path: Path) -> tuple[dict[str, Any], list[str]]:
    """(size, hash and sidecar of a file, problems if the file does not match its sidecar)."""
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
