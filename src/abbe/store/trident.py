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

from abbe.store.commit import commit
from abbe.store.parts import (
    Overrides,
    Peek,
    assemble,
    chunks,
    dataset,
    no_place,
    open_h5,
    peek_h5,
    resolve_patch_size,
    text,
)
from abbe.types import Bag

NAME = "trident"
SUFFIX = ".h5"
VERSION = 1


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


def find_patches(path: Path) -> Path | None:
    """The patches file of a feature file, beside its folder."""
    found = path.parent.parent / "patches" / f"{path.stem}_patches.h5"
    return found if found.is_file() else None


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
        raise no_place(bag, "trident")
    attributes = asdict(geometry) if geometry else _attributes_at_level0(bag)
    with (
        commit(path, format="trident-features", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        _write_coords(file, bag.coords.numpy(), attributes)
        cut = chunks(tuple(bag.features.shape))
        made = file.create_dataset("features", data=bag.features.numpy(), chunks=cut, fletcher32=cut is not None)
        made.attrs["name"] = bag.slide_id
        made.attrs["savetodir"] = attributes.get("savetodir", "")
        made.attrs["encoder"] = bag.encoder or ""


def write(path: Path, bag: Bag, made_with: dict[str, Any] | None = None) -> None:
    """Commit a bag, its patches described at level 0. BagError as `write_features`."""
    write_features(path, bag, made_with=made_with)


def read_features(path: Path, *, patch_size_level0: float | None = None) -> Bag:
    """A feature file as a Bag; see `read`."""
    return read(path, Overrides(patch_size_level0))


def read(path: Path, given: Overrides) -> Bag:
    """A feature file as a Bag. The geometry comes from it, or from the patches file beside its folder.

    Raises BagError naming file and dataset, and the option that supplies what is missing.
    """
    with open_h5(path) as file:
        features = dataset(file, "features", path)
        coords = dataset(file, "coords", path) if "coords" in file else None
        attributes = dict(file["coords"].attrs) if coords is not None else {}
        encoder = text(file["features"].attrs.get("encoder"))
    if coords is None:
        return assemble(path, features, None, None, given, encoder=encoder)
    if "patch_size_level0" not in attributes:
        attributes |= _sibling_attributes(path)
    stated = attributes.get("patch_size_level0")
    said_by = "coords.attrs['patch_size_level0']"
    why = "coords has no attribute 'patch_size_level0', and no patches file of TRIDENT or CLAM lies beside it"
    size = resolve_patch_size(path, None if stated is None else float(stated), given, said_by=said_by, why_none=why)
    has_size = "level0_width" in attributes and "level0_height" in attributes
    return assemble(
        path,
        features,
        coords,
        size,
        given,
        stride=_stride(attributes),
        mpp=float(attributes["level0_mpp"]) if "level0_mpp" in attributes else None,
        level0_size=(int(attributes["level0_width"]), int(attributes["level0_height"])) if has_size else None,
        encoder=encoder,
    )


def peek(path: Path) -> Peek:
    """(N, D, encoder) of a feature file, without reading its features. BagError as `read`."""
    n, width = peek_h5(path, "features")
    with open_h5(path) as file:
        return n, width, text(file["features"].attrs.get("encoder"))


def _stride(attributes: dict[str, Any]) -> float | None:
    needed = ("patch_size", "patch_size_level0", "overlap")
    if any(key not in attributes for key in needed):
        return None
    # Level-0 stride = (patch_size − overlap) × level0_mag / target_mag, and that ratio is also size0 / size.
    scale = float(attributes["patch_size_level0"]) / float(attributes["patch_size"])
    return (float(attributes["patch_size"]) - float(attributes["overlap"])) * scale


def _sibling_attributes(path: Path) -> dict[str, Any]:
    sibling = find_patches(path)
    if sibling is None:
        return {}
    with h5py.File(sibling, "r") as file:
        return dict(file["coords"].attrs) if "coords" in file else {}


def _write_coords(file: h5py.File, coords: np.ndarray, attributes: dict[str, Any]) -> None:
    whole = np.round(coords)
    data = whole.astype(np.int64) if np.array_equal(whole, coords) else coords.astype(np.float64)
    cut = chunks(data.shape)
    made = file.create_dataset("coords", data=data, chunks=cut, fletcher32=cut is not None)
    for key, value in attributes.items():
        made.attrs[key] = value


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
