"""TRIDENT's layout, read and written: what Abbe's own feature files are.

    <out>/<mag>x_<patch>px_<overlap>px_overlap/patches/<slide>_patches.h5     coords
    <out>/<mag>x_<patch>px_<overlap>px_overlap/features_<encoder>/<slide>.h5  coords, features

`coords` is [N, 2] int64, top-left, level-0 pixels, with the geometry in its attributes; `features` is [N, D]. TRIDENT
writes chunks of (1, D), which costs a read a patch; we write large chunks under the same names, each with a checksum.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from abbe.errors import BagError
from abbe.store.commit import commit
from abbe.types import Bag

NAME = "trident"
VERSION = 1
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Geometry:
    """What the attributes of `coords` say. Sizes in pixels of the magnification named, mpp in microns a pixel."""

    patch_size: int
    patch_size_level0: float
    level0_magnification: float
    target_magnification: float
    overlap: int
    level0_width: int
    level0_height: int
    level0_mpp: float  # ours: TRIDENT stores none
    name: str
    savetodir: str


def magnification(mpp: float) -> float:
    """Nominal magnification of `mpp` microns a pixel: 10 / mpp (0.5 is 20×, 0.25 is 40×)."""
    return 10.0 / mpp


def job_name(mpp: float, patch_size: int, overlap: int) -> str:
    """Folder of one tiling, such as `20x_256px_0px_overlap`."""
    return f"{magnification(mpp):.4g}x_{patch_size}px_{overlap}px_overlap"


def patches_path(job: Path, slide_id: str) -> Path:
    """Where a slide's coordinates lie inside the folder of one tiling."""
    return job / "patches" / f"{slide_id}_patches.h5"


def features_path(job: Path, encoder: str, slide_id: str) -> Path:
    """Where a slide's features lie inside the folder of one tiling."""
    return job / f"features_{encoder}" / f"{slide_id}.h5"


def write_patches(path: Path, coords: np.ndarray, geometry: Geometry, made_with: dict[str, Any]) -> None:
    """Commit a patches file: coords [N, 2] in level-0 pixels and their geometry."""
    with (
        commit(path, format="trident-patches", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        _write_coords(file, coords, asdict(geometry))


def write_features(
    path: Path, bag: Bag, geometry: Geometry | None = None, made_with: dict[str, Any] | None = None
) -> None:
    """Commit a feature file. Without `geometry` the attributes describe the patches at level 0.

    Raises BagError for a bag without coordinates: the layout has none without.
    """
    if bag.coords is None or bag.patch_size_level0 is None:
        raise BagError(f"{bag.slide_id}: the trident layout needs coords and patch_size_level0; this bag has neither")
    attributes = asdict(geometry) if geometry else _attributes_at_level0(bag)
    with (
        commit(path, format="trident-features", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        _write_coords(file, bag.coords.numpy(), attributes)
        chunks = _chunks(tuple(bag.features.shape))
        data = bag.features.numpy()
        dataset = file.create_dataset("features", data=data, chunks=chunks, fletcher32=chunks is not None)
        dataset.attrs["name"] = bag.slide_id
        dataset.attrs["savetodir"] = attributes.get("savetodir", "")
        dataset.attrs["encoder"] = bag.encoder or ""


def read_features(path: Path, *, patch_size_level0: float | None = None) -> Bag:
    """A feature file as a Bag. The geometry comes from it, or from the patches file beside its folder.

    Raises BagError naming file and dataset, and the option that supplies what is missing.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BagError(f"{path}: cannot be opened as HDF5 ({error})") from error
    with file:
        if "features" not in file:
            raise BagError(f"{path}: no dataset 'features' (found: {', '.join(file) or 'nothing'})")
        features = _read(file, "features", path)
        coords = _read(file, "coords", path) if "coords" in file else None
        attributes = dict(file["coords"].attrs) if coords is not None else {}
        encoder = file["features"].attrs.get("encoder")
    if features.shape == (0,):  # how TRIDENT writes a slide without tissue
        features = features.reshape(0, 0)
    if coords is None:
        return _bag(path, features, None, None, {}, encoder)
    coords = coords.reshape(-1, 2) if coords.size == 0 else coords
    if "patch_size_level0" not in attributes:
        attributes |= _sibling_attributes(path)
    stated = attributes.get("patch_size_level0")
    if patch_size_level0 is not None and stated is not None and float(stated) != patch_size_level0:
        raise BagError(
            f"{path}: coords.attrs['patch_size_level0'] is {float(stated):g}, --patch-size-level0 says "
            f"{patch_size_level0:g}; leave the option out, or mend the file"
        )
    size = patch_size_level0 if stated is None else float(stated)
    if size is None:
        raise BagError(
            f"{path}: coords has no attribute 'patch_size_level0', and no patches file lies beside it; "
            "say it with --patch-size-level0 (side of a patch in level-0 pixels)"
        )
    return _bag(path, features, coords, size, attributes, encoder)


def peek(path: Path) -> tuple[int, int, str | None]:
    """(N, D, encoder) of a feature file, without reading its features. BagError as `read_features`."""
    try:
        with h5py.File(path, "r") as file:
            shape = file["features"].shape
            encoder = file["features"].attrs.get("encoder")
    except (OSError, KeyError) as error:
        raise BagError(f"{path}: not a readable feature file ({error})") from error
    if shape != (0,) and len(shape) != 2:
        raise BagError(f"{path}: dataset 'features' must be [N, D], its shape is {shape}")
    return (0, 0, encoder) if shape == (0,) else (shape[0], shape[1], encoder or None)


def _bag(
    path: Path,
    features: np.ndarray,
    coords: np.ndarray | None,
    size: float | None,
    attributes: dict[str, Any],
    encoder: Any,
) -> Bag:
    if features.dtype not in (np.float16, np.float32):
        raise BagError(f"{path}: dataset 'features' is {features.dtype}; expected float32 or float16")
    stride = _stride(attributes)
    if coords is not None and stride is not None:
        check_step(coords, stride, str(path))
    has_size = "level0_width" in attributes and "level0_height" in attributes
    name = encoder.decode() if isinstance(encoder, bytes) else encoder
    return Bag(
        torch.from_numpy(features),
        None if coords is None else torch.from_numpy(coords.astype(np.float64)),
        size,
        path.stem,
        stride_level0=stride,
        mpp=float(attributes["level0_mpp"]) if "level0_mpp" in attributes else None,
        level0_size=(int(attributes["level0_width"]), int(attributes["level0_height"])) if has_size else None,
        encoder=name or None,
        source=str(path),
    )


def check_step(coords: np.ndarray, stride: float, where: str) -> None:
    """Refuse coordinates whose usual step along a row is no multiple of `stride` (both level-0 pixels).

    coords: [N, 2]. A wrong patch size shows here and nowhere else: everything downstream would look plausible.
    """
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    x, y = coords[order, 0], coords[order, 1]
    steps = np.diff(x)[np.diff(y) == 0]
    if len(steps) == 0:
        return
    values, counts = np.unique(np.round(steps), return_counts=True)
    modal = float(values[counts.argmax()])
    multiple = max(1, round(modal / stride))
    if abs(modal - multiple * stride) > max(1.0, 0.01 * stride) * multiple:
        raise BagError(
            f"{where}: dataset 'coords' mostly steps by {modal:g} level-0 pixels, its attributes say {stride:g}; "
            "one of the two is wrong, and positions would be too"
        )


def _stride(attributes: dict[str, Any]) -> float | None:
    needed = ("patch_size", "patch_size_level0", "overlap")
    if any(key not in attributes for key in needed):
        return None
    # Level-0 stride = (patch_size − overlap) × level0_mag / target_mag, and that ratio is also size0 / size.
    scale = float(attributes["patch_size_level0"]) / float(attributes["patch_size"])
    return (float(attributes["patch_size"]) - float(attributes["overlap"])) * scale


def _sibling_attributes(path: Path) -> dict[str, Any]:
    sibling = path.parent.parent / "patches" / f"{path.stem}_patches.h5"
    if not sibling.is_file():
        return {}
    with h5py.File(sibling, "r") as file:
        return dict(file["coords"].attrs) if "coords" in file else {}


def _read(file: h5py.File, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(file[name][()])
    except (OSError, RuntimeError) as error:  # a chunk whose checksum fails, a file cut short
        raise BagError(f"{path}: dataset {name!r} cannot be read ({error})") from error


def _write_coords(file: h5py.File, coords: np.ndarray, attributes: dict[str, Any]) -> None:
    whole = np.round(coords)
    data = whole.astype(np.int64) if np.array_equal(whole, coords) else coords.astype(np.float64)
    chunks = _chunks(data.shape)
    dataset = file.create_dataset("coords", data=data, chunks=chunks, fletcher32=chunks is not None)
    for key, value in attributes.items():
        dataset.attrs[key] = value


def _chunks(shape: tuple[int, ...]) -> tuple[int, int] | None:
    rows, width = shape
    return (min(rows, _CHUNK_ROWS), width) if rows and width else None


def _attributes_at_level0(bag: Bag) -> dict[str, Any]:
    assert bag.patch_size_level0 is not None
    size, stride = bag.patch_size_level0, bag.stride_level0 or bag.patch_size_level0
    attributes: dict[str, Any] = {
        "patch_size": math.floor(size),
        "patch_size_level0": size,
        "overlap": round(size - stride),
        "name": bag.slide_id,
        "savetodir": "",
    }
    if bag.mpp is not None:
        mag = magnification(bag.mpp)
        attributes |= {"level0_mpp": bag.mpp, "level0_magnification": mag, "target_magnification": mag}
    if bag.level0_size is not None:
        attributes |= {"level0_width": bag.level0_size[0], "level0_height": bag.level0_size[1]}
    return attributes
