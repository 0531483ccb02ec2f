"""Atomic writes, used for every output: temporary file → close → fsync → rename → fsync of the folder, then a sidecar.

A file `X` is *done* when its sidecar `X.sha256.json` exists and holds the hash of `X`. The sidecar is written last, in
the same way, so a run that is killed leaves either a done file or one that the next run writes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from abbe.errors import StoreError
from abbe.version import __version__

SIDECAR = ".sha256.json"
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\..*)?")
State = Literal["done", "missing", "unsigned", "torn", "altered"]


@contextlib.contextmanager
def commit(path: str | Path, *, format: str, version: int, made_with: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; on a clean exit it is renamed to `path` and the sidecar is written.

    The temporary file is in the same folder and keeps the suffix, because some libraries choose the format by suffix.
    If the body raises, the temporary file is removed and an existing `path` is unchanged.
    made_with: plain JSON values, stored in the sidecar. A later run compares them before it reuses the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}"
    mode = _usual_mode(temporary)
    try:
        yield temporary
        if not temporary.is_file():
            raise StoreError(f"{path}: nothing was written to the temporary file {temporary.name}")
        temporary.chmod(mode)  # some writers create files that only the owner can read
        digest, size = file_sha256(temporary), temporary.stat().st_size
        _into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sidecar = {
        "sha256": digest,
        "size": size,
        "format": format,
        "version": version,
        "made_with": {"abbe": __version__, **(made_with or {})},
    }
    _write_sidecar(sidecar_path(path), sidecar)


def write_bytes(path: str | Path, data: bytes, *, format: str, version: int = 1, **made_with: Any) -> None:
    """Write `data` to `path` with `commit`."""
    with commit(path, format=format, version=version, made_with=made_with) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, *, format: str, version: int = 1, **made_with: Any) -> None:
    """Write `text` to `path` with `commit`, as UTF-8; line endings are not converted."""
    write_bytes(path, text.encode("utf-8"), format=format, version=version, **made_with)


def write_json(path: str | Path, value: Any, *, format: str, version: int = 1, **made_with: Any) -> None:
    """Write `value` to `path` with `commit`, as indented JSON. Raises ValueError for NaN and infinities."""
    write_text(path, to_json(value), format=format, version=version, **made_with)


def to_json(value: Any) -> str:
    """Indented JSON with a final newline; non-ASCII letters are kept. Raises ValueError for NaN and infinities."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sidecar_path(path: str | Path) -> Path:
    """Path of the sidecar of `path`."""
    path = Path(path)
    return path.with_name(path.name + SIDECAR)


def read_sidecar(path: str | Path) -> dict[str, Any] | None:
    """The sidecar of `path`, or None if it does not exist. Raises StoreError if it cannot be parsed."""
    sidecar = sidecar_path(path)
    try:
        text = sidecar.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value["sha256"], str) or not isinstance(value["size"], int):
            raise TypeError("sha256 must be a string and size an integer")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{sidecar}: not a valid sidecar ({error}); remove it and run the command again") from error
    return dict(value)


def fresh_sidecar(path: Path) -> dict[str, Any] | None:
    """The sidecar of a file that has its size and was not written after it; None otherwise, and for a folder.

    A link has the sidecar of its target: one beside the link is of another file.
    """
    path = path.resolve()
    sidecar = read_sidecar(path) if path.is_file() else None
    if sidecar is None:
        return None
    status, written = path.stat(), sidecar_path(path).stat().st_mtime_ns
    return sidecar if status.st_size == sidecar["size"] and status.st_mtime_ns <= written else None


def state(path: str | Path) -> State:
    """State of the file at `path`; `done` if the hash in the sidecar matches. Reads the whole file."""
    path = Path(path)
    if not path.is_file():
        return "missing"
    sidecar = read_sidecar(path)
    if sidecar is None:
        return "unsigned"
    if path.stat().st_size != sidecar["size"]:
        return "torn"
    return "done" if file_sha256(path) == sidecar["sha256"] else "altered"


def is_done(path: str | Path) -> bool:
    """True if `path` exists and the hash in its sidecar matches."""
    return state(path) == "done"


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as a hexadecimal string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(path: str | Path) -> str:
    """A path, or text that contains paths, as valid UTF-8: bytes of a name that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files that a killed run left directly in `folder`, which no other process may be writing to."""
    for path in folder.glob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


def _usual_mode(path: Path) -> int:
    """Permissions of a new file in this folder."""
    # Create a file to learn its mode; the umask cannot be read without setting it.
    path.touch()
    mode = path.stat().st_mode & 0o777
    path.unlink()
    return mode


def _into_place(temporary: Path, path: Path) -> None:
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_sidecar(path: Path, value: dict[str, Any]) -> None:
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.write_text(to_json(value), encoding="utf-8")
        _into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
