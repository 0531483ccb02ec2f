"""Inspect tables and json or yaml files, recognised by their columns or keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abbe.data.benchmarks.prompts import read_conch_prompts
from abbe.data.benchmarks.questions import QuestionFile
from abbe.data.benchmarks.slidebench import read_bcnb, read_slidebench
from abbe.data.benchmarks.slideinstruct import read_slideinstruct
from abbe.data.benchmarks.titan import read_titan_config
from abbe.data.benchmarks.wsi_vqa import read_wsi_vqa
from abbe.data.label_checks import alike, not_known, two_labels
from abbe.data.labels import read_labels
from abbe.data.splits import read_clam_splits
from abbe.data.textfiles import Csv, read_csv, read_json
from abbe.inspection.finding import Finding, InspectSettings, signed
from abbe.store.commit import printable

_LABELS = (2, 60)  # minimum and maximum number of distinct values of a possible label column
_BLIND_ACCURACY = 0.4  # report a single letter that is correct more often than this
_SHOWN = 12  # label values shown


def table(path: Path, run: InspectSettings) -> Finding:
    """Inspect a csv table."""
    read = read_csv(path)
    for columns, look in _KINDS:
        if set(columns) <= set(read.columns):
            kind, facts, problems = look(path, read, run.label)
            break
    else:
        kind, facts = "unknown table", {"rows": len(read.rows), "columns": ", ".join(read.columns)}
        problems = [f"expected one of these sets of columns: {'; '.join(', '.join(columns) for columns, _ in _KINDS)}"]
    whole, said = signed(path)
    return Finding(printable(path), kind, facts | whole, problems + said)


def json_file(path: Path, run: InspectSettings) -> Finding:
    """Inspect a json file: questions, dialogues, reports by split, prompts, or another record."""
    value, _ = read_json(path)
    first = value[0] if isinstance(value, list) and value else None
    problems: list[str] = []
    if isinstance(first, dict) and "conversations" in first:
        kind, facts = "dialogues in SlideInstruct form", _counts(read_slideinstruct(path).describe())
    elif isinstance(first, dict) and {"Question", "Answer"} <= set(first):
        kind, facts, problems = _questions(read_wsi_vqa(path))
    elif isinstance(value, dict) and all(isinstance(value.get(split), list) for split in ("train", "val", "test")):
        kind = "reports by split, in HistGen's form"
        facts = {split: f"{len(value[split])} reports" for split in ("train", "val", "test")}
    elif isinstance(value, dict) and value and all(isinstance(v, dict) and "classnames" in v for v in value.values()):
        sets = {group: read_conch_prompts(path, group=group) for group in value}
        kind = "class prompts"
        facts = {g: f"{len(p.names)} classes, {len(p.templates)} templates" for g, p in sets.items()}
    else:
        kind = "json"
        unit = "keys" if isinstance(value, dict) else "items" if isinstance(value, list) else None
        facts = {"holds": f"{len(value)} {unit}" if unit else f"one {type(value).__name__}"}
    whole, said = signed(path)
    return Finding(printable(path), kind, facts | whole, problems + said)


def yaml_file(path: Path, run: InspectSettings) -> Finding:
    """Inspect the yaml file of a task with prompts."""
    task = read_titan_config(path)
    facts = {"label column": task.target, "classes": len(task.classes), "prompts": sum(map(len, task.prompts.names))}
    whole, said = signed(path)
    return Finding(printable(path), "task with prompts", facts | whole, said)


Look = Callable[[Path, Csv, str | None], tuple[str, dict[str, Any], list[str]]]


def _questions(found: QuestionFile) -> tuple[str, dict[str, Any], list[str]]:
    described = found.describe()
    problems = [f"record {place} is skipped: {reason}" for place, reason in found.unusable.items()]
    letter, share = max(described["always"].items(), key=lambda item: item[1], default=("", 0.0))
    if share > _BLIND_ACCURACY:
        problems.append(
            f"always answering {letter} is correct for {share:.1%} of questions; report this with any accuracy"
        )
    if described["repeated_options"]:
        problems.append(f"{described['repeated_options']} questions have duplicate options; score answers by letter")
    return f"questions, {found.kind}", _counts(described), problems


def _counts(described: dict[str, Any]) -> dict[str, Any]:
    hidden = ("kind", "path", "sha256", "unusable")
    return {name: value for name, value in described.items() if name not in hidden and value not in ("", {}, 0)}


def _slidebench(path: Path, read: Csv, label: str | None) -> tuple[str, dict[str, Any], list[str]]:
    return _questions(read_slidebench(path))


def _bcnb(path: Path, read: Csv, label: str | None) -> tuple[str, dict[str, Any], list[str]]:
    return _questions(read_bcnb(path))


def _labels(path: Path, read: Csv, label: str | None) -> tuple[str, dict[str, Any], list[str]]:
    """Show values of the label column only; other columns may identify a patient."""
    column = label or ("label" if "label" in read.columns else None)
    frame = read_labels(path, label=column or "case_id")
    facts: dict[str, Any] = {"slides": len(frame), "patients": frame["case_id"].nunique()}
    problems = []
    if "split" in frame:
        facts["splits"] = dict(Counter(frame["split"]))
    if column is None:
        others = [name for name in read.columns if name not in ("slide_id", "case_id", "split")]
        distinct = {name: len({row[name].strip() for row in read.rows}) for name in others}
        fitting = {name: f"{n} values" for name, n in distinct.items() if _LABELS[0] <= n <= _LABELS[1]}
        facts["columns that may be a label"] = fitting or "none"
        problems.append("no column 'label'; set the label column with --label")
    else:
        values = Counter(frame[column])
        facts["label" if column == "label" else f"label {column!r}"] = dict(values.most_common(_SHOWN))
        unknown = not_known(values)
        if unknown:
            problems.append(f"labels that mean not known: {', '.join(map(repr, unknown))}; remove these rows")
        for group in alike(values):
            problems.append(f"labels that differ only in case, spaces or as numbers: {', '.join(map(repr, group))}")
        problems += two_labels(frame["case_id"].tolist(), frame[column].tolist())
        few = [f"{value} ({n})" for value, n in values.items() if n < 3]
        if few:
            problems.append(
                f"labels with fewer than three slides: {', '.join(few[:5])}; three splits need at least three per label"
            )
    return "labels", facts, problems


def _clam_splits(path: Path, read: Csv, label: str | None) -> tuple[str, dict[str, Any], list[str]]:
    sides = Counter(read_clam_splits(path).values())
    return "splits in CLAM's form", {split: f"{sides[split]} slides" for split in ("train", "val", "test")}, []


def _slide_table(path: Path, read: Csv, label: str | None) -> tuple[str, dict[str, Any], list[str]]:
    read.filled(["PATIENT", "FILENAME"])
    read.unique("FILENAME", "file")
    patients = {row["PATIENT"] for row in read.rows}
    return "slide table in STAMP's form", {"slides": len(read.rows), "patients": len(patients)}, []


def _clini_table(path: Path, read: Csv, label: str | None) -> tuple[str, dict[str, Any], list[str]]:
    read.filled(["PATIENT"])
    read.unique("PATIENT", "patient")
    return "clinical table in STAMP's form", {"patients": len(read.rows), "columns": len(read.columns)}, []


def _outcomes(path: Path, read: Csv, label: str | None) -> tuple[str, dict[str, Any], list[str]]:
    kinds = Counter(row["outcome"] for row in read.rows)
    bad = [row for row in read.rows if row["outcome"] in ("failed", "skipped")]
    problems = [f"{row['slide_id']}: {row['outcome']} at {row['stage']}: {row['reason']}" for row in bad]
    return "outcomes of a run", dict(kinds), problems


def _reports(path: Path, read: Csv, label: str | None) -> tuple[str, dict[str, Any], list[str]]:
    read.filled(["slide_id", "text"])
    read.unique("slide_id", "slide")
    distinct = len({row["text"] for row in read.rows})
    return "reports", {"reports": len(read.rows), "distinct": distinct}, []


_KINDS: tuple[tuple[tuple[str, ...], Look], ...] = (
    (("ID", "Slide", "Tumor", "Question", "Answer"), _slidebench),
    (("ID", "Slide", "Task", "Question", "Answer"), _bcnb),
    (("slide_id", "outcome", "stage", "reason"), _outcomes),
    (("slide_id", "case_id"), _labels),
    (("slide_id", "text"), _reports),
    (("train", "val", "test"), _clam_splits),
    (("PATIENT", "FILENAME"), _slide_table),
    (("PATIENT",), _clini_table),
)
