"""Match a labels table with a folder of feature files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from abbe.data import SPLITS
from abbe.data.dataset import SlideRecord
from abbe.data.labels import read_labels
from abbe.data.settings import CohortSettings
from abbe.data.splits import split_patients
from abbe.errors import BagError, TableError
from abbe.store.aliases import same_encoder
from abbe.store.bags import peek_bag
from abbe.store.detect import SUFFIXES, ZARR


@dataclass(frozen=True)
class Cohort:
    """The usable slides of a labels table, by split.

    table: the labels table with its column `split`.
    left_out: {slide_id: reason} of the slides that cannot be used.
    """

    table: pd.DataFrame
    splits: dict[str, list[SlideRecord]]
    classes: tuple[str, ...]
    width: int
    encoder: str | None
    left_out: dict[str, str]

    @property
    def slides(self) -> dict[str, int]:
        """Number of slides per split."""
        return {split: len(records) for split, records in self.splits.items()}

    @property
    def patients(self) -> dict[str, int]:
        """Number of patients per split."""
        return {split: len({record.case_id for record in records}) for split, records in self.splits.items()}


def read_cohort(settings: CohortSettings) -> Cohort:
    """Load a cohort for training.

    If the table has no column `split`, patients are split at random with `split_seed`. Raises the errors of
    read_labels and load_cohort, and TableError if a split is empty or the label has a single value.
    """
    table = read_labels(settings.labels, label=settings.label, splits=settings.splits)
    if "split" not in table:
        table = split_patients(table, label=settings.label, seed=settings.split_seed)
    cohort = load_cohort(table, settings.features, label=settings.label, allow_missing=settings.allow_missing)
    if len(cohort.classes) < 2:
        raise TableError(f"{settings.labels}: column {settings.label!r} has a single value, {cohort.classes[0]!r}")
    for split, records in cohort.splits.items():
        if not records:
            raise TableError(f"{settings.labels}: no usable slide in split {split!r}")
    return cohort


def load_cohort(
    table: pd.DataFrame,
    features: str | Path,
    *,
    label: str = "label",
    classes: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> Cohort:
    """Match a table (columns slide_id, case_id, split and the label) with a folder of feature files, `<slide_id>.h5`.

    Other layouts that can be read without options are supported too: `<slide_id>.safetensors`, `.pt`, ….

    classes: class names in order; by default the sorted values of the label.
    allow_missing: skip slides whose file is missing, broken or empty, and return them in `left_out`.

    Raises TableError if slides cannot be used, BagError if widths or encoders differ.
    """
    folder = Path(features)
    if not folder.is_dir():
        raise TableError(f"{folder}: the features folder does not exist; expected a folder of <slide_id>.h5 files")
    names = tuple(classes) if classes is not None else tuple(sorted(table[label].unique()))
    splits: dict[str, list[SlideRecord]] = {name: [] for name in SPLITS}
    left_out: dict[str, str] = {}
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
    return Cohort(table, splits, names, first[1], first[2], left_out)


def _feature_file(folder: Path, slide_id: str) -> Path:
    """Path of the slide's feature file; .h5 is preferred, and returned if no file exists."""
    paths = [folder / f"{slide_id}{suffix}" for suffix in (*SUFFIXES, ZARR)]
    return next((path for path in paths if path.exists()), paths[0])
