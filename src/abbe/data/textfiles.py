"""Strict readers for csv, json and text files; csv values stay strings and errors name the line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from abbe.errors import TableError, nearest


@dataclass(frozen=True)
class Csv:
    """A csv file: stripped column names, rows as read, the line number of each row, and the file's SHA-256."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    lines: list[int]
    sha256: str

    def need(self, columns: Sequence[str]) -> None:
        """Raise TableError for the first missing column, with the closest existing name."""
        for column in columns:
            if column not in self.columns:
                raise TableError(f"{self.path}: no column {column!r}. {nearest(column, self.columns)}")

    def refuse(self, row: int, message: str) -> NoReturn:
        """Raise TableError with the file and the line of `row`."""
        raise TableError(f"{self.path}, line {self.lines[row]}: {message}")

    def filled(self, columns: Sequence[str]) -> None:
        """Strip the values of `columns`; raise TableError for a missing column or an empty value."""
        self.need(columns)
        for column in columns:
            for index, row in enumerate(self.rows):
                row[column] = row[column].strip()
                if not row[column]:
                    self.refuse(index, f"column {column!r} is empty")

    def unique(self, column: str, what: str) -> None:
        """Raise TableError if a value of `column` is duplicated. `what` names the value in the message."""
        seen: set[str] = set()
        for index, row in enumerate(self.rows):
            if row[column] in seen:
                self.refuse(index, f"{what} {row[column]!r} is duplicated")
            seen.add(row[column])


def read_csv(path: str | Path) -> Csv:
    """Read a comma-separated UTF-8 file. A byte-order mark and blank lines are ignored.

    Raises TableError with file and line for a missing or empty file, no rows, another delimiter or encoding, a
    duplicate column, a row whose number of values differs from the number of columns, or an unclosed quote.
    """
    path = Path(path)
    text, digest = _text(path, "csv table")
    if not text.strip():
        raise TableError(f"{path}: cannot be read as a csv table (the file is empty)")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    columns: list[str] = []
    start = 1
    try:
        for values in reader:
            if not columns:
                columns = _header(path, [value.strip() for value in values], reader.line_num)
            elif values and len(values) != len(columns):
                raise TableError(
                    f"{path}, line {start}: {len(values)} values for {len(columns)} columns; "
                    "values that contain a comma must be quoted"
                )
            elif values:
                rows.append(dict(zip(columns, values, strict=True)))
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        # An unclosed quote consumes the rest of the file, so report the line on which its row starts.
        raise TableError(f"{path}, line {start}: cannot be read as a csv table ({error})") from error
    if not rows:
        raise TableError(f"{path}: the table has a header but no rows")
    return Csv(path, tuple(columns), rows, lines, digest)


def read_json(path: str | Path) -> tuple[Any, str]:
    """Read a json file as (value, SHA-256). Raises TableError if it is not valid JSON or has a duplicate key."""
    path = Path(path)
    text, digest = _text(path, "json file")

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise TableError(f"{path}: key {key!r} is duplicated ({count} times in one object)")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique_keys), digest
    except TableError:
        raise
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: not valid JSON ({error})") from error


def read_list(path: str | Path) -> tuple[list[Any], str]:
    """Read a non-empty json list as (list, SHA-256). Raises TableError."""
    value, digest = read_json(path)
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else f"a json {type(value).__name__}"
        raise TableError(f"{path}: expected a json list of objects, found {found}")
    return value, digest


def fields(
    path: str | Path, place: int, record: Any, keys: Sequence[str], *, optional: Sequence[str] | None = ()
) -> tuple[str, ...]:
    """The stripped strings under `keys` in one record of a json list; `place` is its index from 0.

    Raises TableError with file, record, key and value for a value that is missing, empty or not a string, or a key
    that is in neither `keys` nor `optional` (None allows any key).
    """
    where = f"{path}, record {place}"
    if not isinstance(record, dict):
        raise TableError(f"{where}: expected an object with {', '.join(keys)}, found {str(record)[:80]}")
    for key in record:
        if optional is not None and key not in keys and key not in optional:
            raise TableError(f"{where}: unknown key {key!r}. {nearest(key, [*keys, *optional])}")
    for key in keys:
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise TableError(f"{where}: {key} is {record.get(key)!r}; expected a non-empty string")
    return tuple(record[key].strip() for key in keys)


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file; a byte-order mark is removed. Raises TableError."""
    return _text(Path(path), "text file")[0]


def _text(path: Path, kind: str) -> tuple[str, str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file") from error
    except OSError as error:
        raise TableError(f"{path}: cannot be read as a {kind} ({error.strerror})") from error
    if data[:4] == b"PK\x03\x04":
        raise TableError(
            f"{path}: this is an archive or an Excel workbook, not a {kind}; save it as a csv file in UTF-8"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
        raise TableError(f"{path}, line {line}: not UTF-8 ({guess}); save the file as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TableError(f"{path}, line {line}: contains a null byte; expected a {kind} in UTF-8")
    return text, hashlib.sha256(data).hexdigest()


def _header(path: Path, names: list[str], line: int) -> list[str]:
    joined = ",".join(names)
    for delimiter, word in (("\t", "tabs"), (";", "semicolons")):
        if joined.count(delimiter) > joined.count(","):
            raise TableError(
                f"{path}, line {line}: columns are separated by {word}; save the table with commas instead"
            )
    for name, count in Counter(names).items():
        if count > 1:
            what = f"column {name!r} is duplicated" if name else "a column without a name is duplicated"
            raise TableError(f"{path}, line {line}: {what} ({count} times); rename or remove all but one")
    return names
