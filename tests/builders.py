"""Small bags and cohorts that tests build on."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
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


def write_clam(folder: Path, bag: Bag, *, level: int = 0, downsample: float = 1.0, old: bool = False) -> Path:
    """CLAM's three files of a slide, with the attributes its scripts write; returns the feature file."""
    assert bag.coords is not None
    assert bag.patch_size_level0 is not None
    size = round(bag.patch_size_level0 / downsample)
    coords = bag.coords.numpy().astype(np.int32)
    width, height = bag.level0_size or (20_000, 10_000)
    level_dim = (int(width / downsample), int(height / downsample))
    for name in ("patches", "h5_files", "pt_files"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "patches" / f"{bag.slide_id}.h5", "w") as file:
        if old:  # with images, coordinates in pixels of their level, geometry on the images
            shape = (len(bag), size, size, 3)
            holder = file.create_dataset("imgs", shape, "u1", maxshape=(None, *shape[1:]), chunks=(1, *shape[1:]))
            coords = (coords // downsample).astype(np.int32)
            file.create_dataset("coords", data=coords, maxshape=(None, 2), chunks=(1, 2))
            holder.attrs["wsi_name"] = bag.slide_id
        else:
            holder = file.create_dataset("coords", data=coords, maxshape=(None, 2), chunks=(1, 2))
            holder.attrs["patch_size"] = size
            holder.attrs["name"] = bag.slide_id
            holder.attrs["save_path"] = str(folder / "patches")
        holder.attrs["patch_level"] = level
        holder.attrs["downsample"] = (downsample, downsample)
        holder.attrs["downsampled_level_dim"] = level_dim
        holder.attrs["level_dim"] = level_dim
    path = folder / "h5_files" / f"{bag.slide_id}.h5"
    with h5py.File(path, "w") as file:
        data = bag.features.numpy()
        file.create_dataset("features", data=data, maxshape=(None, bag.width), chunks=(1, bag.width))
        file.create_dataset("coords", data=coords, maxshape=(None, 2), chunks=(1, 2))
    torch.save(bag.features, folder / "pt_files" / f"{bag.slide_id}.pt")
    return path


def write_stamp(path: Path, bag: Bag, *, mpp: float = 0.5, **attributes: object) -> Path:
    """A file as STAMP 2.1 writes it; an attribute given as None is left out."""
    assert bag.coords is not None
    assert bag.patch_size_level0 is not None
    stated = {
        "stamp_version": "2.4.0",
        "extractor": "mahmood-conch1_5",
        "unit": "um",
        "tile_size_um": bag.patch_size_level0 * mpp,
        "tile_size_px": 224,
        "code_hash": "1a2b3c4d",
        "feat_type": "tile",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = (bag.coords.numpy() * mpp).astype(np.float32)
        file["feats"] = bag.features.half().numpy()
        for key, value in {**stated, **attributes}.items():
            if value is not None:
                file.attrs[key] = value
    return path


def write_slidechat(path: Path, rows: np.ndarray) -> Path:
    """A csv of SlideChat: 512 columns of features under a header row, then where the patch was."""
    table = pd.DataFrame(rows.astype(np.float32))
    table["location"] = [f"{row}_{row}" for row in range(len(table))]
    table["file_name"] = [f"{row}.png" for row in range(len(table))]
    table.to_csv(path, index=False)
    return path


def write_wsidata(
    path: Path, bag: Bag, models: dict[str, np.ndarray], *, spec: dict[str, object] | None = None
) -> Path:
    """A SpatialData store as wsidata writes it, of which only what holds tiles and features is there.

    Tiles stand in another order than rows of features. Needs zarr.
    """
    zarr = pytest.importorskip("zarr", reason="the extra `wsidata` is not installed")
    assert bag.coords is not None
    assert bag.patch_size_level0 is not None
    size = bag.patch_size_level0
    root = zarr.open_group(path, mode="w")
    root.attrs["slide_properties"] = {"shape": [5000, 9000], "mpp": bag.mpp, "raw": "{}"}
    root.attrs["tile_spec"] = {"tiles": spec} if spec else {}
    ids = np.arange(len(bag))
    for model, features in models.items():
        table = root.create_group(f"tables/{model}_tiles")
        table.attrs.update({"encoding-type": "anndata", "region": "tiles", "instance_key": "tile_id"})
        table.create_array("X", data=features)
        table.create_array("obs/tile_id", data=ids)
    shapes = path / "shapes" / "tiles"
    shapes.mkdir(parents=True, exist_ok=True)
    polygons = [
        struct.pack("<BIII10d", 1, 3, 1, 5, x + size, y, x + size, y + size, x, y + size, x, y, x + size, y)
        for x, y in bag.coords.tolist()
    ]
    table = pa.table({"tile_id": ids[::-1], "geometry": polygons[::-1]})
    pq.write_table(table, shapes / "shapes.parquet")
    return path
