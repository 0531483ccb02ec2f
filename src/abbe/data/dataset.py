"""Dataset of labelled bags read from disk, and packed batches of them."""

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
    """One slide of a cohort; `label` is the class index."""

    slide_id: str
    case_id: str
    path: Path
    label: int


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """A batch of bags with class indices, [B] int64."""

    bags: TokenBatch
    labels: Tensor

    @property
    def count(self) -> int:
        """Number of slides."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> LabelledBatch:
        return LabelledBatch(self.bags.to(device), self.labels.to(device))


class SlideDataset(Dataset[tuple[Bag, int]]):
    """Dataset of (bag, class index). At most `cache_bytes` of features are cached."""

    def __init__(self, items: Sequence[SlideRecord], *, cache_bytes: int = 2 << 30) -> None:
        self.items = list(items)
        self._free_bytes = cache_bytes
        self._cache: dict[int, Bag] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> tuple[Bag, int]:
        bag = self._cache.get(row)
        if bag is None:
            bag = read_bag(self.items[row].path)
            size = bag.features.numel() * bag.features.element_size()
            if size <= self._free_bytes:
                self._free_bytes -= size
                self._cache[row] = bag
        return bag, self.items[row].label


def collate(samples: Sequence[tuple[Bag, int]]) -> LabelledBatch:
    """Pack samples of a SlideDataset into one batch."""
    return LabelledBatch(TokenBatch.pack([bag for bag, _ in samples]), torch.tensor([label for _, label in samples]))


class Batches:
    """Batch sampler that yields this process's row indices of every batch, in `parts` lists per batch.

    The order depends only on `seed` and `epoch`, so a resumed run sees the same batches. Each batch is drawn globally
    and then divided among the processes, so its content does not depend on `world`. Batch sizes within an epoch differ
    by at most one, so that every process gets rows. With seed=None rows keep their order.

    weights: [n] draw n rows with replacement, with probabilities proportional to these; None for each row once.
    parts: micro-batches per batch; reduced if a process has fewer rows than parts.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int | None,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        if min(n, batch_size) < world:
            raise InputError(f"{n} slides in batches of {batch_size} cannot be divided among {world} processes")
        self.n, self.seed, self.rank, self.world = n, seed, rank, world
        self.shares = None if weights is None else np.asarray(weights, float) / np.sum(weights)
        self.steps = min(-(-n // batch_size), n // world)
        self.parts = min(parts, n // self.steps // world)
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.n)
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, self.epoch])
            order = rng.permutation(self.n) if self.shares is None else rng.choice(self.n, self.n, p=self.shares)
        for batch in np.array_split(order, self.steps):
            for part in np.array_split(batch[self.rank :: self.world], self.parts):
                yield part.tolist()
