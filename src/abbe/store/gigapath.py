"""What users of Prov-GigaPath keep: `features` and `coords` (level-0 pixels) in an h5 or in a dict of tensors.

Nothing says the patch size, so the caller must. A dict may also hold the tile names, `<x>x_<y>y.png`, for coordinates.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abbe.errors import BagError
from abbe.store.parts import Overrides, Peek, assemble, dataset, open_h5, peek_h5, resolve_patch_size, shape_of
from abbe.store.saved import describe, load_pt
from abbe.types import Bag

NAME = "gigapath"
_FEATURES = ("features", "feats", "tile_embeds")
_NAMES = ("tile_names", "names", "tiles")
_TILE = re.compile(r"(?:^|/)(\d+)x_(\d+)y(?:\.\w+)?$")


def read(path: Path, given: Overrides) -> Bag:
    """An h5 or a dict of tensors. BagError for one without coordinates or tile names, or without a patch size."""
    if path.suffix.lower() in (".h5", ".hdf5"):
        with open_h5(path) as file:
            features, coords = dataset(file, "features", path), dataset(file, "coords", path)
        key = "features"
    else:
        value = load_pt(path)
        key = features_key(path, value)
        features, coords = value[key], _coords(path, value)
    why = "GigaPath's files keep no patch size (256 is wired into its code, at whatever mpp the tiles were cut)"
    size = resolve_patch_size(path, None, given, said_by="", why_none=why)
    return assemble(path, features, coords, size, given, name=key)


def peek(path: Path) -> Peek:
    """(N, D, None): the encoder is not named."""
    if path.suffix.lower() in (".h5", ".hdf5"):
        return *peek_h5(path, "features"), None
    value = load_pt(path)
    key = features_key(path, value)
    return *shape_of(path, key, tuple(value[key].shape)), None


def features_key(path: Path, value: Any) -> str:
    """What the dict calls its features. BagError where nothing in it is known as such."""
    keys = [key for key in _FEATURES if isinstance(value, dict) and isinstance(value.get(key), torch.Tensor)]
    if not keys:
        raise BagError(f"{path}: found {describe(value)}; expected a dict with a tensor {' or '.join(_FEATURES)}")
    return keys[0]


def _coords(path: Path, value: dict[str, Any]) -> np.ndarray:
    if isinstance(value.get("coords"), torch.Tensor):
        return np.asarray(value["coords"].double().numpy())
    names = next((value[key] for key in _NAMES if isinstance(value.get(key), list)), None)
    if names is None:
        raise BagError(f"{path}: no tensor 'coords' and no list 'tile_names' (found {describe(value)})")
    found = [_TILE.search(str(name)) for name in names]
    for row, match in enumerate(found):
        if match is None:
            raise BagError(f"{path}: tile name {row} is {names[row]!r}; expected <x>x_<y>y.png")
    return np.array([[float(m[1]), float(m[2])] for m in found if m is not None]).reshape(-1, 2)
