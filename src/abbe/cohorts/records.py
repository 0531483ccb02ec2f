"""What a folder was made with: read back before anything is made in it again, so that two plans never mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from abbe.errors import InputError
from abbe.store import commit


def plain(value: Any) -> Any:
    """The value as it will be read back from JSON (tuples become lists)."""
    return json.loads(json.dumps(value))


def earlier(path: Path, *, format: str, version: int, key: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The record an earlier run left under `path`, or None where there is none, or none that is whole.

    Raises InputError where it is of another format or version, or where its `key` differs from `wanted` (plain JSON
    values); the message names what differs.
    """
    if not commit.is_done(path):
        return None
    sidecar = commit.read_sidecar(path) or {}
    found = (sidecar.get("format"), sidecar.get("version"))
    if found != (format, version):
        raise InputError(
            f"{path}: format {found[0]!r} version {found[1]!r}, expected {format!r} version {version}; "
            "use another folder, or remove this one"
        )
    record = dict(json.loads(path.read_text(encoding="utf-8")))
    was, now = _flat(record[key]), _flat(wanted)
    differ = [name for name in sorted(was | now) if was.get(name) != now.get(name)]
    if differ:
        said = "; ".join(f"{name} is {was.get(name)!r} there and {now.get(name)!r} here" for name in differ)
        raise InputError(f"{path}: this folder was made with other parameters ({said}); use another, or remove it")
    return record


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    out: dict[str, Any] = {}
    for name, item in value.items():
        out |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return out
