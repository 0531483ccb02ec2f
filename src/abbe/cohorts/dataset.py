"""Slides on disk as a dataset of labelled bags, and batches of them as one packed TokenBatch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from abbe.cohorts.tables import SPLITS
from abbe.errors import BagError, InputError, TableError
from abbe.store.aliases import same_encoder
from abbe.store.bags import peek_bag, read_bag
from abbe.store.detect import SUFFIXES, ZARR
from abbe.types import Bag, TokenBatch


@dataclass(frozen=True)
class Item:
    """One slide of a cohort. `label` is the class number."""

    slide_id: str
    case_id: str
    path: Path
    label: int


@dataclass(frozen=True, eq=False)
class Labelled:
    """A batch and the class of each slide, [B] int64."""

    bags: TokenBatch
    labels: Tensor

    def to(self, device: torch.device | str) -> Labelled:
        return Labelled(self.bags.to(device), self.labels.to(device))


class SlideDataset(Dataset[tuple[Bag, int]]):
    """(Bag, class) of each item. Bags stay in memory up to `cache_bytes`; beyond that they are read every time."""

    def __init__(self, items: Sequence[Item], *, cache_bytes: int = 2 << 30) -> None:
        self.items = list(items)
        self._room = cache_bytes
        self._kept: dict[int, Bag] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> tuple[Bag, int]:
        bag = self._kept.get(row)
        if bag is None:
            bag = read_bag(self.items[row].path)
            size = bag.features.numel() * bag.features.element_size()
            if size <= self._room:
                self._room -= size
                self._kept[row] = bag
        return bag, self.items[row].label


def collate(samples: Sequence[tuple[Bag, int]]) -> Labelled:
    """Samples of a SlideDataset as one packed batch."""
    return Labelled(TokenBatch.pack([bag for bag, _ in samples]), torch.tensor([label for _, label in samples]))


class Batches:
    """Row numbers of each batch of one epoch; every process sees its own share of every batch.

    The order depends on seed and epoch alone, so a resumed run goes on with the very batches it would have had. A batch
    is drawn over all processes and then dealt out, so one process and many see the same batches. Sizes within an epoch
    differ by at most one, so that no batch is too small to be dealt out. seed=None keeps the order of the rows.
    """

    def __init__(self, n: int, batch_size: int, *, seed: int | None, rank: int = 0, world: int = 1) -> None:
        if min(n, batch_size) < world:
            raise InputError(f"{n} slides in batches of {batch_size} cannot be dealt to {world} processes")
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        return min(-(-self.n // self.batch_size), self.n // self.world)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.n)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        for whole in np.array_split(order, len(self)):
            yield whole[self.rank :: self.world].tolist()


@dataclass(frozen=True)
class Cohort:
    """The slides of a table that can be used, by split, and those that cannot, each with its reason."""

    splits: dict[str, list[Item]]
    classes: tuple[str, ...]
    width: int
    encoder: str | None
    left_out: dict[str, str]


def gather(
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
    splits: dict[str, list[Item]] = {name: [] for name in SPLITS}
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
        splits[str(row["split"])].append(Item(slide_id, str(row["case_id"]), path, names.index(value)))
    if left_out and not allow_missing:
        some = "; ".join(list(left_out.values())[:3])
        raise TableError(
            f"{len(left_out)} of {len(table)} slides cannot be used: {some}. --allow-missing goes on without them and "
            "lists them in the result"
        )
    if first is None:
        raise TableError(f"{folder}: none of the {len(table)} slides of the table has usable features")
    return Cohort(splits, names, first[1], first[2], left_out)


def _feature_file(folder: Path, slide_id: str) -> Path:
    """The slide's feature file, h5 first; where there is none, the .h5 that is missing."""
    paths = [folder / f"{slide_id}{suffix}" for suffix in (*SUFFIXES, ZARR)]
    return next((path for path in paths if path.exists()), paths[0])
