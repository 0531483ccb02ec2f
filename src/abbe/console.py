"""Terminal output: messages and progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def say(text: str) -> None:
    """Print a message to stderr; stdout is reserved for results."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def result(text: str, value: Any, *, json_output: bool) -> None:
    """Print the result of a verb to stdout: `text`, or `value` as one JSON document with --json."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) if json_output else text)
    sys.stdout.write("\n")


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Progress]:
    """A progress bar with one task (id 0) on stderr; shown only on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        bar.add_task(description, total=total)
        yield bar
