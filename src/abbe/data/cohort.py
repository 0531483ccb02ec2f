"""A labels table and a folder of feature files, matched: the slides that can be used, by split."""

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
    """The slides of a table that can be used, by split, and those that cannot, each with its reason.

    table: the labels table with its column `split`.
    """

    table: pd.DataFrame
    splits: dict[str, list[SlideRecord]]
    classes: tuple[str, ...]
    width: int
    encoder: str | None
    left_out: dict[str, str]

    @property
    def slides(self) -> dict[str, int]:
        """Slides in each split."""
        return {split: len(records) for split, records in self.splits.items()}

    @property
    def patients(self) -> dict[str, int]:
        """Patients in each split."""
        return {split: len({record.case_id for record in records}) for split, records in self.splits.items()}


def read_cohort(settings: CohortSettings) -> Cohort:
    """The cohort to train on: every split has slides, and the label has at least two values.

    Where the table has no column `split`, patients are split by `split_seed`. Raises TableError as read_labels and
    load_cohort do, and where a split would be empty.
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

    A file of another layout does as well, as far as it needs no option to be read: `<slide_id>.safetensors`, `.pt`, ….

    classes: their order, where a model fixes it; sorted otherwise.
    allow_missing: go on without slides whose file is missing, broken or empty; they are returned in `left_out`.

    Raises TableError naming the slides that cannot be used, BagError where widths or encoders differ.
    """
    folder = Path(features)
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder of feature files (expected <slide_id>.h5 in it)")
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
                raise BagError(f"{path}: no patches (an empty slide)")
        except BagError as error:
            left_out[slide_id] = str(error)
            continue
        if first is None:
            first = (str(path), width, encoder)
        if width != first[1] or not same_encoder(encoder, first[2]):
            raise BagError(
                f"{path}: width {width}, encoder {encoder!r}; {first[0]} has width {first[1]}, encoder {first[2]!r}. "
                "Features of one cohort must come from one encoder"
            )
        splits[str(row["split"])].append(SlideRecord(slide_id, str(row["case_id"]), path, names.index(value)))
    if left_out and not allow_missing:
        some = "; ".join(list(left_out.values())[:3])
        raise TableError(
            f"{len(left_out)} of {len(table)} slides cannot be used: {some}. --allow-missing goes on without them and "
            "lists them in the result"
        )
    if first is None:
        raise TableError(f"{folder}: none of the {len(table)} slides of the table has usable features")
    return Cohort(table, splits, names, first[1], first[2], left_out)


def _feature_file(folder: Path, slide_id: str) -> Path:
    """The slide's feature file, h5 first; where there is none, the .h5 that is missing."""
    paths = [folder / f"{slide_id}{suffix}" for suffix in (*SUFFIXES, ZARR)]
    return next((path for path in paths if path.exists()), paths[0])
