"""Match a labels table with a folder of feature files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from abbe.console import progress
from abbe.data import SPLITS
from abbe.data.dataset import SlideRecord
from abbe.data.label_checks import check_labels, check_trained, said, two_labels
from abbe.data.labels import read_labels
from abbe.data.settings import CohortSettings
from abbe.data.splits import split_patients
from abbe.errors import BagError, TableError
from abbe.store.aliases import same_encoder
from abbe.store.bags import peek_bag, read_kind
from abbe.store.commit import fresh_sidecar
from abbe.store.detect import SUFFIXES, ZARR
from abbe.store.kind import Kind, common_kind, group_by_kind, list_groups, unknown_in_part
from abbe.store.resume import content_sha256


@dataclass(frozen=True)
class Cohort:
    """The usable slides of a labels table, by split.

    table: the labels table with its column `split`.
    left_out: {slide_id: reason} of the slides that cannot be used.
    sha256: {slide_id: hash of its feature file}.
    kind: of all features; keys on which they differ are unknown.   mixed: whether they differ.
    untrained: classes without a training slide, which a model cannot learn.
    remarks: what a reader of the result should know, one sentence each.
    """

    table: pd.DataFrame
    splits: dict[str, list[SlideRecord]]
    classes: tuple[str, ...]
    width: int
    encoder: str | None
    left_out: dict[str, str]
    sha256: dict[str, str] = field(default_factory=dict)
    kind: Kind = field(default_factory=Kind)
    mixed: bool = False
    untrained: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def slides(self) -> dict[str, int]:
        """Number of slides per split."""
        return {split: len(records) for split, records in self.splits.items()}

    @property
    def patients(self) -> dict[str, int]:
        """Number of patients per split."""
        return {split: len({record.case_id for record in records}) for split, records in self.splits.items()}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """{class: {split: slides}}."""
        return {
            name: {split: sum(record.label == number for record in records) for split, records in self.splits.items()}
            for number, name in enumerate(self.classes)
        }

    def describe(self) -> str:
        """The slides of every class and split, the kind of the features and the remarks, as lines of text."""
        return "\n".join([f"slides: {said(self.counts)}", f"features: {self.kind}", *self.remarks])


def read_cohort(settings: CohortSettings) -> Cohort:
    """Load a cohort for training.

    If the table has no column `split`, patients are split at random with `split_seed`. Raises the errors of
    read_labels, check_labels and load_cohort, and TableError if a split is empty, the label has a single value, or a
    class has no training slide.
    """
    table = read_labels(settings.labels, label=settings.label, splits=settings.splits)
    where, allow = str(settings.labels), settings.allow_labels
    check_labels(table, settings.label, where=where, allow=allow)
    if "split" not in table:
        table = split_patients(table, label=settings.label, seed=settings.split_seed)
    cohort = load_cohort(
        table,
        settings.features,
        label=settings.label,
        allow_missing=settings.allow_missing,
        allow_mixed=settings.allow_mixed,
    )
    if len(cohort.classes) < 2:
        raise TableError(f"{settings.labels}: column {settings.label!r} has a single value, {cohort.classes[0]!r}")
    for split, records in cohort.splits.items():
        if not records:
            raise TableError(f"{settings.labels}: no usable slide in split {split!r}")
    untrained = check_trained(cohort.counts, where=where, label=settings.label, allow=allow)
    remarks = [
        f"class {name!r} has no training slide; averages over classes include it, though the model cannot learn it"
        for name in untrained
    ]
    return replace(cohort, untrained=tuple(untrained), remarks=(*cohort.remarks, *remarks))


def load_cohort(
    table: pd.DataFrame,
    features: str | Path,
    *,
    label: str = "label",
    classes: Sequence[str] | None = None,
    allow_missing: bool = False,
    allow_mixed: bool = False,
) -> Cohort:
    """Match a table (columns slide_id, case_id, split and the label) with a folder of feature files, `<slide_id>.h5`.

    Other layouts that can be read without options are supported too: `<slide_id>.safetensors`, `.pt`, ….

    classes: class names in order; by default the sorted values of the label.
    allow_missing: skip slides whose file is missing, broken or empty, and return them in `left_out`.
    allow_mixed: accept features of different kinds (see `Kind`), except of different encoders.

    Raises TableError if slides cannot be used, an id names a file outside the folder, or two slides have one feature
    file; BagError if widths, encoders or kinds differ.
    """
    folder = Path(features)
    if not folder.is_dir():
        raise TableError(f"{folder}: the features folder does not exist; expected a folder of <slide_id>.h5 files")
    names = tuple(classes) if classes is not None else tuple(sorted(table[label].unique()))
    splits: dict[str, list[SlideRecord]] = {name: [] for name in SPLITS}
    left_out: dict[str, str] = {}
    kinds: dict[str, Kind] = {}
    first: tuple[str, int, str | None] | None = None
    for row in table.to_dict("records"):
        slide_id, value = str(row["slide_id"]), str(row[label])
        if value not in names:
            raise TableError(f"slide {slide_id!r}: label {value!r} is not one of the classes {list(names)}")
        path = _feature_file(folder, slide_id)
        try:
            n, width, encoder = peek_bag(path)
            if n == 0:
                raise BagError(f"{path}: the slide has no patches")
            kinds[slide_id] = read_kind(path)
        except BagError as error:
            left_out[slide_id] = str(error)
            continue
        if first is None:
            first = (str(path), width, encoder)
        if width != first[1] or not same_encoder(encoder, first[2]):
            raise BagError(
                f"{path}: width {width}, encoder {encoder!r}; {first[0]} has width {first[1]}, encoder {first[2]!r}. "
                "All features of a cohort must come from the same encoder"
            )
        splits[str(row["split"])].append(SlideRecord(slide_id, str(row["case_id"]), path, names.index(value)))
    if left_out and not allow_missing:
        some = "; ".join(list(left_out.values())[:3])
        raise TableError(
            f"{len(left_out)} of {len(table)} slides cannot be used: {some}. Use --allow-missing to skip them and "
            "list them in the result"
        )
    if first is None:
        raise TableError(f"{folder}: none of the {len(table)} slides in the table has usable features")
    mixed = _mixed(folder, kinds, allow=allow_mixed)
    remarks = [*mixed, *unknown_in_part(kinds)]
    records = [record for split in splits.values() for record in split]
    remarks += two_labels([record.case_id for record in records], [names[record.label] for record in records])
    return Cohort(
        table,
        splits,
        names,
        first[1],
        first[2],
        left_out,
        sha256=_hashes(splits),
        kind=common_kind(kinds.values()),
        mixed=bool(mixed),
        remarks=tuple(remarks),
    )


def _feature_file(folder: Path, slide_id: str) -> Path:
    """Path of the slide's feature file; .h5 is preferred, and returned if no file exists.

    Raises TableError for an id with a path in it: two ids could then name one file, in two splits.
    """
    if slide_id in (".", "..") or any(sign in slide_id for sign in "/\\\0"):
        raise TableError(
            f"slide_id {slide_id!r} contains a path; expected the name of a feature file in {folder} without its "
            "suffix; put all feature files into one folder"
        )
    paths = [folder / f"{slide_id}{suffix}" for suffix in (*SUFFIXES, ZARR)]
    return next((path for path in paths if path.exists()), paths[0])


def _mixed(folder: Path, kinds: dict[str, Kind], *, allow: bool) -> list[str]:
    """A remark on features of several kinds. Raises BagError that lists them, unless allowed."""
    groups = group_by_kind(kinds)
    if len(groups) == 1:
        return []
    differ = "; ".join(groups[0][0].differences(groups[1][0]))
    found = f"the features are of {len(groups)} kinds ({differ}): {list_groups(groups)}"
    if not allow:
        raise BagError(
            f"{folder}: {found}. A model can tell such slides apart without looking at tissue; encode all slides "
            "alike, or use --allow-mixed to use them together"
        )
    return [found]


def _hashes(splits: dict[str, list[SlideRecord]]) -> dict[str, str]:
    """{slide_id: hash of its feature file}. Raises TableError naming two slides whose features are of one slide."""
    places = [(split, record) for split, records in splits.items() for record in records]
    seen: dict[str, tuple[str, SlideRecord]] = {}
    found: dict[str, str] = {}
    with progress("checking features", len(places)) as bar:
        for split, record in places:
            found[record.slide_id] = content_sha256(record.path)
            for origin in (found[record.slide_id], *_origins(record.path)):
                other_split, other = seen.setdefault(origin, (split, record))
                if other is not record:
                    raise TableError(
                        f"{record.path}: slide {record.slide_id!r} (split {split!r}) has the features of slide "
                        f"{other.slide_id!r} (split {other_split!r}, {other.path}): they are one slide, which would be "
                        "counted twice; remove one of them from the table"
                    )
            bar.advance(bar.task_ids[0])
    return found


def _origins(path: Path) -> list[str]:
    """Hashes of what a file was made from, as its sidecar states them: two names of a slide give different bytes."""
    made_with = (fresh_sidecar(path) or {}).get("made_with", {})
    slide, source = made_with.get("slide"), made_with.get("source_sha256")
    ends = [f"slide {json.dumps(slide, sort_keys=True)}"] if isinstance(slide, dict) and "sha256_ends" in slide else []
    return [*ends, f"source {source}"] if source else ends
