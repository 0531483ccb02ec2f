"""`outcomes.csv`: one row per item of a run, including items that failed or were skipped."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from abbe.store.commit import printable, write_text

Result = Literal["done", "empty", "failed", "skipped"]
_SHOWN = 20


@dataclass(frozen=True)
class Outcome:
    """One row. `stage` and `reason` are empty if the outcome is `done`; `seconds` is wall time."""

    slide_id: str
    path: str
    outcome: Result
    stage: str = ""
    reason: str = ""
    patches: int = 0
    seconds: float = 0.0


def write_outcomes(path: Path, outcomes: list[Outcome]) -> None:
    """Write the table in the given order. Line breaks in a reason become spaces."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        row = asdict(outcome)
        row["reason"] = " ".join(outcome.reason.split())
        row["seconds"] = f"{outcome.seconds:.2f}"
        writer.writerow(row)
    write_text(path, text.getvalue(), format="outcomes")


def summary(outcomes: list[Outcome], table: Path) -> str:
    """Text that a verb prints at its end: the first failed or skipped items, the counts, and the path of the table."""
    unmade = [outcome for outcome in outcomes if outcome.outcome in ("failed", "skipped")]
    lines = [f"{o.path}: {o.outcome} at {o.stage}: {o.reason}" for o in unmade[:_SHOWN]]
    if len(unmade) > _SHOWN:
        lines.append(f"and {len(unmade) - _SHOWN} more")
    counted = sorted(Counter(outcome.outcome for outcome in outcomes).items())
    patches = sum(outcome.patches for outcome in outcomes)
    total = ", ".join(f"{number} {name}" for name, number in counted)
    return "\n".join([*lines, f"{total}; {patches} patches; see {printable(table)}"])


def exit_code(outcomes: list[Outcome]) -> int:
    """0 if nothing failed, 1 otherwise. An empty slide is not a failure."""
    return int(any(outcome.outcome == "failed" for outcome in outcomes))
