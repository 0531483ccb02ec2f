"""TRIDENT's layout, which is also the layout of Abbe's own feature files.

    <out>/<mag>x_<patch>px_<overlap>px_overlap/patches/<slide>_patches.h5     coords
    <out>/<mag>x_<patch>px_<overlap>px_overlap/features_<encoder>/<slide>.h5  coords, features

`coords` is [N, 2] int64, top-left, level-0 pixels, with the geometry in its attributes; `features` is [N, D]. TRIDENT
writes chunks of (1, D), which costs one read per patch; Abbe writes large chunks, each with a checksum.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from abbe.errors import BagError
from abbe.store.commit import commit
from abbe.store.h5 import open_h5, write_dataset
from abbe.store.kind import ATTRIBUTE, Kind, parse_kind
from abbe.store.parts import Overrides, Peek, assemble, needs_coords, number, resolve_patch_size, shape_of, text
from abbe.types import MPP, Bag, Px0

NAME = "trident"
SUFFIX = ".h5"
VERSION = 1
_JOB = re.compile(r"([\d.]+)x_(\d+)px_(\d+)px_overlap")


@dataclass(frozen=True)
class Geometry:
    """The attributes of `coords`. patch_size and overlap are in pixels at the target magnification."""

    patch_size: int
    patch_size_level0: float
    level0_magnification: float
    target_magnification: float
    overlap: int
    level0_width: int
    level0_height: int
    level0_mpp: float  # added by Abbe; TRIDENT does not store it
    name: str
    savetodir: str


def magnification(mpp: float) -> float:
    """Nominal magnification: 10 / mpp (0.5 is 20×, 0.25 is 40×)."""
    return 10.0 / mpp


def job_name(mpp: float, patch_size: int, overlap: int) -> str:
    """Name of the folder of one tiling, such as `20x_256px_0px_overlap`."""
    return f"{magnification(mpp):.4g}x_{patch_size}px_{overlap}px_overlap"


def patches_path(job: Path, slide_id: str) -> Path:
    """The path of a slide's coordinates in the folder of one tiling."""
    return job / "patches" / f"{slide_id}_patches.h5"


def find_patches(path: Path) -> Path | None:
    """The patches file of a feature file, in `patches/` beside its folder; None if there is none."""
    found = path.parent.parent / "patches" / f"{path.stem}_patches.h5"
    return found if found.is_file() else None


def features_path(job: Path, encoder: str, slide_id: str) -> Path:
    """The path of a slide's features in the folder of one tiling."""
    return job / f"features_{encoder}" / f"{slide_id}.h5"


def write_patches(path: Path, coords: np.ndarray, geometry: Geometry, made_with: dict[str, Any]) -> None:
    """Commit a patches file: coords [N, 2] in level-0 pixels and their geometry."""
    with (
        commit(path, format="trident-patches", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        _write_coords(file, coords, asdict(geometry))


def write_features(
    path: Path,
    bag: Bag,
    geometry: Geometry | None = None,
    made_with: dict[str, Any] | None = None,
    *,
    kind: Kind | None = None,
) -> None:
    """Commit a feature file. Without `geometry` the attributes describe the patches at level 0.

    kind: what the encoder was given, if the attributes do not say it: they may describe level 0.

    Raises BagError for a bag without coordinates, which the layout requires.
    """
    if bag.coords is None or bag.patch_size_level0 is None:
        raise needs_coords(bag, "trident")
    attributes = asdict(geometry) if geometry else _attributes_at_level0(bag)
    with (
        commit(path, format="trident-features", version=VERSION, made_with=made_with) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        _write_coords(file, bag.coords.numpy(), attributes)
        about = {"name": bag.slide_id, "savetodir": attributes.get("savetodir", ""), "encoder": bag.encoder or ""}
        if kind is not None:
            about[ATTRIBUTE] = json.dumps(kind.own())
        write_dataset(file, "features", bag.features.numpy()).attrs.update(about)


def write(path: Path, bag: Bag, made_with: dict[str, Any] | None = None) -> None:
    """Commit a bag with its patches described at level 0. Raises BagError as `write_features` does.

    A bag does not know the resolution its encoder was given, so the kind is that in `made_with`, or unknown.
    """
    write_features(path, bag, made_with=made_with, kind=parse_kind(path, (made_with or {}).get("kind", {})))


def read(path: Path, overrides: Overrides, *, with_features: bool = True) -> Bag:
    """A feature file as a Bag. The geometry comes from the file itself, or from its patches file.

    with_features: False gives features of width 0, for callers that read them in chunks.

    Raises BagError naming file and dataset, and the option that supplies what is missing.
    """
    with open_h5(path) as file:
        patches, _ = shape_of(path, "features", file.shape("features"))
        features = file.array("features") if with_features else np.zeros((patches, 0), np.float32)
        coords = file.array("coords") if file.has("coords") else None
        attributes = file.attributes("coords") if coords is not None else {}
        encoder = text(file.attributes("features").get("encoder"))
    if coords is None:
        return assemble(path, features, None, None, overrides, encoder=encoder)
    if "patch_size_level0" not in attributes:
        attributes |= _patches_attributes(path)

    def stated(key: str) -> float | None:
        return number(path, attributes, key) if key in attributes else None

    size, mpp, width, height = map(stated, ("patch_size_level0", "level0_mpp", "level0_width", "level0_height"))
    missing = "coords has no attribute 'patch_size_level0', and there is no patches file of TRIDENT or CLAM"
    return assemble(
        path,
        features,
        coords,
        resolve_patch_size(
            path,
            None if size is None else Px0(size),
            overrides,
            source="coords.attrs['patch_size_level0']",
            missing=missing,
        ),
        overrides,
        stride=_stride(path, attributes),
        mpp=None if mpp is None else MPP(mpp),
        level0_size=None if width is None or height is None else (int(width), int(height)),
        encoder=encoder,
    )


def peek(path: Path) -> Peek:
    """(N, D, encoder) of a feature file, without reading its features. Raises BagError as `read` does."""
    with open_h5(path) as file:
        return *shape_of(path, "features", file.shape("features")), text(file.attributes("features").get("encoder"))


def kind(path: Path) -> Kind:
    """The kind of a feature file. Raises BagError for an attribute that is not a number, as `read` does."""
    with open_h5(path) as file:
        about = file.attributes("features")
        attributes = file.attributes("coords") if file.has("coords") else {}
    if "patch_size_level0" not in attributes:
        attributes = _patches_attributes(path) | attributes

    def stated(key: str, *, positive: bool = True) -> float | None:
        return number(path, attributes, key, positive=positive) if key in attributes else None

    level0 = Kind(
        text(about.get("encoder")), patch_size_level0=stated("patch_size_level0"), level0_mpp=stated("level0_mpp")
    )
    if ATTRIBUTE in about:
        try:
            values = json.loads(text(about[ATTRIBUTE]) or "{}")
        except ValueError as error:
            raise BagError(f"{path}: attribute {ATTRIBUTE!r} is not JSON ({error})") from error
        return parse_kind(path, values).filled(level0)
    # The mpp that was asked for; a level that is up to 5 % off is read as it is, and the attributes then state its own.
    job = _JOB.fullmatch(text(attributes.get("savetodir")) or "")
    if job is not None and level0.level0_mpp is not None:
        return Kind(mpp=10 / float(job[1]), patch_size=float(job[2]), overlap=float(job[3])).filled(level0)
    target = stated("target_magnification")
    if target is None:
        return level0
    size, overlap = stated("patch_size"), stated("overlap", positive=False)
    return Kind(mpp=10 / target, patch_size=size, overlap=overlap).filled(level0)


def _stride(path: Path, attributes: dict[str, Any]) -> Px0 | None:
    if not {"patch_size", "patch_size_level0", "overlap"} <= set(attributes):
        return None
    size, size0 = number(path, attributes, "patch_size"), number(path, attributes, "patch_size_level0")
    # Level-0 stride = (patch_size − overlap) × level0_mag / target_mag, and that ratio is also size0 / size.
    return Px0((size - number(path, attributes, "overlap", positive=False)) * (size0 / size))


def _patches_attributes(path: Path) -> dict[str, Any]:
    patches = find_patches(path)
    if patches is None:
        return {}
    with open_h5(patches) as file:
        return file.attributes("coords") if file.has("coords") else {}


def _write_coords(file: h5py.File, coords: np.ndarray, attributes: dict[str, Any]) -> None:
    whole = np.round(coords)
    data = whole.astype(np.int64) if np.array_equal(whole, coords) else coords.astype(np.float64)
    write_dataset(file, "coords", data).attrs.update(attributes)


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
