"""Other people's csv and json files, read strictly: every value a string, every refusal with its line."""

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
    """A csv file: its columns (stripped), its rows as read, the line each row starts on, and the file's SHA-256."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    lines: list[int]
    sha256: str

    def need(self, columns: Sequence[str]) -> None:
        """Raises TableError naming the first of `columns` that is not there, and the nearest that is."""
        for column in columns:
            if column not in self.columns:
                raise TableError(f"{self.path}: no column {column!r}. {nearest(column, self.columns)}")

    def refuse(self, row: int, message: str) -> NoReturn:
        """Raises TableError with the file and the line of `row`."""
        raise TableError(f"{self.path}, line {self.lines[row]}: {message}")

    def filled(self, columns: Sequence[str]) -> None:
        """Strip the values of `columns`. Raises TableError naming line and column of an empty one."""
        self.need(columns)
        for column in columns:
            for index, row in enumerate(self.rows):
                row[column] = row[column].strip()
                if not row[column]:
                    self.refuse(index, f"column {column!r} is empty")

    def unique(self, column: str, what: str) -> None:
        """Raises TableError naming line and value where a value of `column` comes a second time."""
        seen: set[str] = set()
        for index, row in enumerate(self.rows):
            if row[column] in seen:
                self.refuse(index, f"{what} {row[column]!r} is listed a second time")
            seen.add(row[column])


def read_csv(path: str | Path) -> Csv:
    """Read a csv file of commas in UTF-8; a byte-order mark is not part of the first name. Blank lines are skipped.

    Raises TableError naming file and line: no such file, an empty file, no rows, another delimiter, another encoding,
    a column named twice, a row with more or fewer values than columns, a quote that is never closed.
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
                    "a value that holds a comma needs quotes"
                )
            elif values:
                rows.append(dict(zip(columns, values, strict=True)))
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        # A quote that is never closed swallows the rest: the line where its row starts is the one to look at.
        raise TableError(f"{path}, line {start}: cannot be read as a csv table ({error})") from error
    if not rows:
        raise TableError(f"{path}: a header but no rows")
    return Csv(path, tuple(columns), rows, lines, digest)


def read_json(path: str | Path) -> tuple[Any, str]:
    """(the value, SHA-256 of the file). Raises TableError naming the file and a key that is given twice."""
    path = Path(path)
    text, digest = _text(path, "json file")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise TableError(f"{path}: key {key!r} is given {count} times in one object")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once), digest
    except TableError:
        raise
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: not JSON ({error})") from error


def read_list(path: str | Path) -> tuple[list[Any], str]:
    """(a json list with something in it, SHA-256 of the file). Raises TableError."""
    value, digest = read_json(path)
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else f"a json {type(value).__name__}"
        raise TableError(f"{path}: expected a json list of objects, found {found}")
    return value, digest


def fields(
    path: str | Path, place: int, record: Any, keys: Sequence[str], *, optional: Sequence[str] | None = ()
) -> tuple[str, ...]:
    """The texts under `keys` of one object of a json list, stripped.

    Raises TableError naming file, place in the list (from 0), key and value of what is missing, empty, no text, or
    neither in `keys` nor `optional` (None: further keys are free).
    """
    where = f"{path}, record {place}"
    if not isinstance(record, dict):
        raise TableError(f"{where}: expected an object with {', '.join(keys)}, found {str(record)[:80]}")
    for key in record:
        if optional is not None and key not in keys and key not in optional:
            raise TableError(f"{where}: unknown key {key!r}. {nearest(key, [*keys, *optional])}")
    for key in keys:
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise TableError(f"{where}: {key} is {record.get(key)!r}; expected a text")
    return tuple(record[key].strip() for key in keys)


def read_text(path: str | Path) -> str:
    """A UTF-8 text file without its byte-order mark. Raises TableError."""
    return _text(Path(path), "text file")[0]


def _text(path: Path, kind: str) -> tuple[str, str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file") from error
    except OSError as error:
        raise TableError(f"{path}: cannot be read as a {kind} ({error.strerror})") from error
    if data[:4] == b"PK\x03\x04":
        raise TableError(f"{path}: is an archive or an Excel workbook, not a {kind}; save it as csv in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
        raise TableError(f"{path}, line {line}: not UTF-8 ({guess}); save the file as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TableError(f"{path}, line {line}: holds a zero byte, so it is not a {kind} in UTF-8")
    return text, hashlib.sha256(data).hexdigest()


def _header(path: Path, names: list[str], line: int) -> list[str]:
    joined = ",".join(names)
    for delimiter, word in (("\t", "tabs"), (";", "semicolons")):
        if joined.count(delimiter) > joined.count(","):
            raise TableError(f"{path}, line {line}: columns are separated by {word}; save the table with commas")
    for name, count in Counter(names).items():
        if count > 1:
            what = f"column {name!r} is there" if name else "a column without a name is there"
            raise TableError(f"{path}, line {line}: {what} {count} times; rename or remove all but one")
    return names
