"""Files of Prov-GigaPath users: `features` and `coords` (level-0 pixels) in an h5 file or a dict of tensors.

The files do not state the patch size. A dict may have the tile names, `<x>x_<y>y.png`, in place of coordinates.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abbe.errors import BagError
from abbe.store import h5
from abbe.store.parts import Overrides, Peek, assemble, resolve_patch_size, shape_of
from abbe.store.saved import coords_array, dense, describe, load_pt
from abbe.types import Bag

NAME = "gigapath"
_FEATURES = ("features", "feats", "tile_embeds")
_NAMES = ("tile_names", "names", "tiles")
_TILE = re.compile(r"(?:^|/)(\d+)x_(\d+)y(?:\.\w+)?$")


def read(path: Path, overrides: Overrides) -> Bag:
    """Raises BagError for a file without coordinates or tile names, and if no patch size is given."""
    if path.suffix.lower() in h5.SUFFIXES:
        key = "features"
        with h5.open_h5(path) as file:
            features: np.ndarray | torch.Tensor = file.array(key)
            coords = file.array("coords")
    else:
        value = load_pt(path)
        key, features = _features(path, value)
        coords = _coords(path, value)
    missing = "GigaPath's files do not state the patch size (its code uses 256 pixels, at the mpp of the tiling)"
    size = resolve_patch_size(path, None, overrides, missing=missing)
    return assemble(path, features, coords, size, overrides, name=key)


def peek(path: Path) -> Peek:
    """(N, D, None): the encoder is not named."""
    if path.suffix.lower() in h5.SUFFIXES:
        with h5.open_h5(path) as file:
            return *shape_of(path, "features", file.shape("features")), None
    key, features = _features(path, load_pt(path))
    return *shape_of(path, key, tuple(features.shape)), None


def _features(path: Path, value: Any) -> tuple[str, torch.Tensor]:
    keys = [key for key in _FEATURES if isinstance(value, dict) and isinstance(value.get(key), torch.Tensor)]
    if not keys:
        raise BagError(f"{path}: found {describe(value)}; expected a dict with a tensor {' or '.join(_FEATURES)}")
    return keys[0], dense(path, keys[0], value[keys[0]])


def _coords(path: Path, value: dict[str, Any]) -> np.ndarray:
    if isinstance(value.get("coords"), torch.Tensor):
        return coords_array(path, value["coords"])
    names = next((value[key] for key in _NAMES if isinstance(value.get(key), list)), None)
    if names is None:
        raise BagError(f"{path}: no tensor 'coords' and no list 'tile_names' (found {describe(value)})")
    corners = []
    for row, name in enumerate(names):
        match = _TILE.search(str(name))
        if match is None:
            raise BagError(f"{path}: tile name {row} is {name!r}; expected <x>x_<y>y.png")
        corners.append((float(match[1]), float(match[2])))
    return np.array(corners).reshape(-1, 2)
