"""Small bags and cohorts that tests build on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from abbe.store.bags import write_bag
from abbe.types import Bag, TokenBatch


def make_bag(n: int, *, dim: int = 16, slide_id: str = "slide", seed: int = 0) -> Bag:
    """n patches of 256 level-0 pixels on a raster ten wide, with normal features."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(n)
    coords = torch.stack([rows % 10, rows // 10], 1) * 256
    features = torch.randn(n, dim, generator=generator)
    return Bag(features, coords, 256.0, slide_id, stride_level0=256.0, mpp=0.5, encoder="test")


def make_batch(lengths: list[int], *, dim: int = 16, seed: int = 0) -> TokenBatch:
    bags = [make_bag(n, dim=dim, slide_id=f"slide{i}", seed=seed + i) for i, n in enumerate(lengths)]
    return TokenBatch.pack(bags)


def write_cohort(
    folder: Path, *, patients: int = 24, n: int = 40, dim: int = 8, shift: float = 2.0
) -> tuple[Path, Path]:
    """(features, labels.csv) of a learnable two-class cohort: a fifth of a slide's patches is shifted by its class."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(2, dim, generator=generator)
    rows = []
    for number in range(patients):
        label = number % 2
        bag = make_bag(n, dim=dim, slide_id=f"s{number:02d}", seed=100 + number)
        bag.features[: n // 5] += shift * direction[label]
        write_bag(folder / "features" / f"{bag.slide_id}.h5", bag)
        rows.append({"case_id": f"{number:03d}", "slide_id": bag.slide_id, "label": "ab"[label]})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "features", folder / "labels.csv"
