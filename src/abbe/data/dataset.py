"""Slides on disk as a dataset of labelled bags, and batches of them as one packed TokenBatch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from abbe.errors import InputError
from abbe.store.bags import read_bag
from abbe.types import Bag, TokenBatch


@dataclass(frozen=True)
class SlideRecord:
    """One slide of a cohort. `label` is the class number."""

    slide_id: str
    case_id: str
    path: Path
    label: int


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """A batch and the class of each slide, [B] int64."""

    bags: TokenBatch
    labels: Tensor

    @property
    def count(self) -> int:
        """Slides."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> LabelledBatch:
        return LabelledBatch(self.bags.to(device), self.labels.to(device))


class SlideDataset(Dataset[tuple[Bag, int]]):
    """(Bag, class) of each item. Bags stay in memory up to `cache_bytes`; beyond that they are read every time."""

    def __init__(self, items: Sequence[SlideRecord], *, cache_bytes: int = 2 << 30) -> None:
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


def collate(samples: Sequence[tuple[Bag, int]]) -> LabelledBatch:
    """Samples of a SlideDataset as one packed batch."""
    return LabelledBatch(TokenBatch.pack([bag for bag, _ in samples]), torch.tensor([label for _, label in samples]))


class Batches:
    """Row numbers of each batch of one epoch, in `parts`; every process sees its own share of every batch.

    The order depends on seed and epoch alone, so a resumed run goes on with the very batches it would have had. A batch
    is drawn over all processes and then dealt out, so one process and many see the same batches. Sizes within an epoch
    differ by at most one, so that no batch is too small to be dealt out. seed=None keeps the order of the rows.

    parts: lists in which a share of a batch comes, fewer where a share has fewer rows.
    """

    def __init__(
        self, n: int, batch_size: int, *, seed: int | None, rank: int = 0, world: int = 1, parts: int = 1
    ) -> None:
        if min(n, batch_size) < world:
            raise InputError(f"{n} slides in batches of {batch_size} cannot be dealt to {world} processes")
        self.n, self.seed, self.rank, self.world = n, seed, rank, world
        self.steps = min(-(-n // batch_size), n // world)
        self.parts = min(parts, n // self.steps // world)
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.n)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        for whole in np.array_split(order, self.steps):
            for part in np.array_split(whole[self.rank :: self.world], self.parts):
                yield part.tolist()
