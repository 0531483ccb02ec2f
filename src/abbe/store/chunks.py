"""A feature file in chunks, so that a slide of millions of patches needs no memory for all its features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from abbe.errors import BagError
from abbe.store import trident
from abbe.store.bags import read_bag
from abbe.store.detect import layout_of
from abbe.store.h5 import open_h5
from abbe.store.parts import Overrides, as_rows
from abbe.types import Bag


def read_in_chunks(path: Path, rows: int = 16_384) -> tuple[Bag, Iterator[Tensor]]:
    """(the bag, its features as chunks [n, D] of at most `rows` patches, in order).

    In TRIDENT's layout the features are read chunk by chunk, and those of the bag have width 0. Files of other layouts
    are read whole. Raises BagError as `read_bag` does; for features when their chunk is read.
    """
    if layout_of(path) != trident.NAME:
        bag = read_bag(path)
        return bag, iter(bag.features.split(rows))
    return trident.read(path, Overrides(), with_features=False), _chunks(path, rows)


def _chunks(path: Path, rows: int) -> Iterator[Tensor]:
    with open_h5(path) as file:
        for start in range(0, file.shape("features")[0], rows):
            chunk = as_rows(path, file.rows("features", start, start + rows), "features")
            if not bool((finite := torch.isfinite(chunk)).all()):
                row, column = torch.nonzero(~finite)[0].tolist()
                value = float(chunk[row, column])
                raise BagError(f"{path}: features[{start + row}, {column}] is {value}; every feature must be finite")
            yield chunk
