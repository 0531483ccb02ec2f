"""Checks of labels as a set: what a table of single rows does not show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

import pandas as pd

from abbe.data import SPLITS
from abbe.data.settings import AllowedLabels
from abbe.errors import TableError

_NOT_KNOWN = {"", "na", "n/a", "n.a.", "nan", "null", "unknown", "not available", "not applicable", "not reported"}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_SHOWN = 3  # slides or patients named


def check_labels(table: pd.DataFrame, label: str, *, where: str, allow: Collection[AllowedLabels] = ()) -> None:
    """Raise TableError for values that mean "not known" and for values that differ only in case, spaces or as text.

    allow: `na` and `alike` accept them.
    """
    values = Counter(table[label])
    unknown = not_known(values)
    if unknown and "na" not in allow:
        first = [str(slide) for slide in table.loc[table[label].isin(unknown), "slide_id"][:_SHOWN]]
        raise TableError(
            f"{where}, column {label!r}: {_counted(unknown, values)} would be a class, but such a value says that no "
            f"label is known (first slides: {', '.join(first)}); remove these rows, or use --allow-labels na"
        )
    same = alike(values)
    if same and "alike" not in allow:
        shown = "; ".join(_counted(group, values) for group in same)
        raise TableError(
            f"{where}, column {label!r}: values that differ only in case, spaces or as a number would be classes of "
            f"their own: {shown}; write them alike, or use --allow-labels alike"
        )


def not_known(values: Collection[str]) -> list[str]:
    """The values that stand for a label that is not known, such as NA, n/a, nan, unknown and [Not Available]."""
    return [value for value in values if value.strip(" []<>()#").casefold() in _NOT_KNOWN]


def alike(values: Collection[str]) -> list[list[str]]:
    """Groups of different values that are equal but for case or spaces, or as numbers (0 and 0.0)."""
    groups: dict[str, list[str]] = {}
    for value in values:
        text = "".join(value.split()).casefold()
        groups.setdefault(f"{float(text):g}" if _NUMBER.fullmatch(text) else text, []).append(value)
    return [group for group in groups.values() if len(group) > 1]


def check_trained(
    counts: dict[str, dict[str, int]], *, where: str, label: str, allow: Collection[AllowedLabels]
) -> list[str]:
    """The classes without a training slide. Raises TableError if there is one, unless `untrained` is allowed.

    counts: {class: {split: slides}}.
    """
    untrained = [name for name, slides in counts.items() if not slides["train"]]
    if untrained and "untrained" not in allow:
        raise TableError(
            f"{where}, column {label!r}: no usable training slide of class {', '.join(map(repr, untrained))} "
            f"({said(counts)}); give it training slides, remove its rows, or use --allow-labels untrained"
        )
    return untrained


def said(counts: dict[str, dict[str, int]]) -> str:
    """{class: {split: slides}} in words."""
    return "; ".join(
        f"{name}: {', '.join(f'{split} {slides[split]}' for split in SPLITS)}" for name, slides in counts.items()
    )


def two_labels(cases: Sequence[str], labels: Sequence[str]) -> list[str]:
    """One sentence if slides of a patient have different labels: right for some tasks, an error in others."""
    found: dict[str, set[str]] = {}
    for case, value in zip(cases, labels, strict=True):
        found.setdefault(case, set()).add(value)
    several = [case for case, values in found.items() if len(values) > 1]
    if not several:
        return []
    shown = ", ".join(f"{case} ({', '.join(sorted(found[case]))})" for case in several[:_SHOWN])
    more = ", …" if len(several) > _SHOWN else ""
    return [f"{len(several)} of {len(found)} patients have slides with different labels: {shown}{more}"]


def _counted(names: Sequence[str], values: Counter[str]) -> str:
    return " and ".join(f"{name!r} ({values[name]} slides)" for name in names)
