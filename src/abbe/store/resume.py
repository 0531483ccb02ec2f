"""Checks, for every verb that resumes, that an existing result was made with the same settings.

The settings of a result are recorded in a JSON file or in the sidecar. They are compared with the current settings
before a result is reused or replaced, so that two runs in one folder are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from abbe.errors import ConfigError, InputError, StoreError
from abbe.store import commit

_SHOWN = 5  # differences named in an error
_SHA256 = re.compile("[0-9a-f]{64}")


def plain(value: Any) -> Any:
    """The value as JSON returns it (tuples become lists)."""
    return json.loads(json.dumps(value))


def changes(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Collection[str] = ()) -> dict[str, str]:
    """{key: "OLD there and NEW here"} for every key that differs; nested keys are joined by dots and come last.

    ignore: top-level keys that do not affect the result.
    """
    before, now = flat(old, ignore=ignore), flat(plain(dict(new)), ignore=ignore)
    missing = object()
    return {
        key: f"{_shown(before, key)} there and {_shown(now, key)} here"
        for key in sorted(before | now, key=lambda key: (key.count("."), key))
        if before.get(key, missing) != now.get(key, missing)
    }


def check_unchanged(
    where: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    remedy: str,
    what: str = "settings",
    ignore: Collection[str] = (),
    error: type[InputError] = ConfigError,
) -> None:
    """Raise `error` if any key differs; the message names `where`, each key with both values, and the remedy."""
    different = changes(old, new, ignore=ignore)
    if different:
        first = list(different.items())[:_SHOWN]
        said = "; ".join(f"{key} is {values}" for key, values in first)
        if len(different) > len(first):
            said += f"; and {len(different) - len(first)} more"
        raise error(f"{where}: made with other {what} ({said}); {remedy}")


def read_previous_record(
    path: Path,
    *,
    format: str,
    version: int,
    key: str,
    wanted: dict[str, Any],
    earlier: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> dict[str, Any] | None:
    """The record that an earlier run wrote to `path`, or None if it is missing or incomplete.

    earlier: adds to what is found at `key` the values of entries that earlier versions of Abbe did not write.
    Raises InputError if its format or version is different, or if its `key` differs from `wanted` (plain JSON values);
    the message names the keys that differ.
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
    check_unchanged(
        path, earlier(record[key]), wanted, remedy="use another folder, or remove this one", error=InputError
    )
    return record


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's content, or of a .zarr store's: of the names and hashes of all files in it.

    A file with a sidecar is not read again if it has the sidecar's size and was not written after it.
    """
    if path.is_dir():
        digest = hashlib.sha256()
        for item in sorted(item for item in path.rglob("*") if item.is_file()):
            digest.update(f"{item.relative_to(path)}\0{commit.file_sha256(item)}\n".encode())
        return digest.hexdigest()
    sidecar = commit.fresh_sidecar(path)
    return commit.file_sha256(path) if sidecar is None else str(sidecar["sha256"])


def made_before(
    path: Path,
    record: Mapping[str, Any],
    *,
    overwrite: bool,
    words: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    ours: Callable[[Path], bool] = lambda _: False,
) -> dict[str, Any] | None:
    """The `made_with` of the sidecar of `path` if it matches `record`; None if the file must be written.

    record: compared key by key with `made_with`; other keys of `made_with` are results and are returned too.
    words: for a top-level key, the message to use instead of its two values.
    defaults: values that earlier versions of Abbe used for keys they did not record.
    ours: whether a file without a sidecar was written by Abbe, in a run killed before it wrote the sidecar.

    Raises StoreError if the file was made with other settings or by another program, unless `overwrite`.
    """
    state, sidecar = commit.state(path), commit.read_sidecar(path)
    if state == "unsigned" and not overwrite and not ours(path):
        raise StoreError(f"{path} was not written by abbe and would be replaced; use --overwrite, or another --out")
    if state != "done" or sidecar is None:
        return None
    old = {**(defaults or {}), **sidecar["made_with"]}
    different = changes({key: old.get(key) for key in record}, record)
    if not different:
        return old
    if overwrite:
        return None
    reasons = {(words or {}).get(key.partition(".")[0], f"{key} is {values}") for key, values in different.items()}
    if set(record) - set(old):
        reasons = {"another command, or another version of Abbe, made it"}
    raise StoreError(
        f"{path} was made from other inputs or settings: {'; '.join(sorted(reasons))}; use --overwrite or another --out"
    )


def flat(value: Mapping[str, Any], *, ignore: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """A flat dict of a nested one; keys are joined by dots."""
    out: dict[str, Any] = {}
    for name, item in value.items():
        if not prefix and name in ignore:
            continue
        out |= flat(item, prefix=f"{prefix}{name}.") if isinstance(item, dict) and item else {f"{prefix}{name}": item}
    return out


def _shown(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return f"sha256 {value[:12]}…"
    return repr(value) if key in values else "absent"
