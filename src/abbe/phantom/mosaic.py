"""Banks of real labelled patches, to fill the layouts of phantom slides: mosaics.

A mosaic is no slide: neighbouring patches come from different places. Only the texture within a patch is real.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import delayed
from numpy.typing import NDArray

from abbe.data.labelled_images import LabelledImage, expand, find_images, read_images, sources_sha256
from abbe.errors import InputError, SlideError
from abbe.phantom.bank import (
    Arrays,
    EncoderVersion,
    PatchBank,
    encode,
    encoder_version,
    in_parallel,
    plan_record,
    read_or_make,
)
from abbe.phantom.classes import TissueClasses
from abbe.phantom.draw import shuffled
from abbe.phantom.settings import SPLITS_OF_GROUPS, MosaicBankPlan

FORMAT, VERSION = "abbe-mosaic-bank", 1
_BATCH = 64


def mosaic_classes(plan: MosaicBankPlan) -> TissueClasses:
    """The classes of a mosaic: the rest first, then a and b."""
    count = len(plan.rest)
    return TissueClasses((*plan.rest, plan.a, plan.b), tuple(range(count)), (count,), (count + 1,))


def build_mosaic_bank(plan: MosaicBankPlan, folder: str | Path, *, workers: int | None = None) -> PatchBank:
    """The bank of this plan in `folder`: read if it is there, encoded otherwise.

    Splits are drawn after reading, so all five share one folder. A group has one name in all classes and one split.
    Patches that cannot be decoded are left out and named in bank.json. Raises InputError if `folder` holds another
    bank, if patches have another size, and if a class has too few groups.
    """
    sources = expand(plan.patches)
    if not sources:
        raise InputError("mosaic: no patches given; name a folder or zips")
    index = index_of(plan.patches, plan.index)
    hashes = sources_sha256(sources, index)
    encoder = encoder_version(plan.encoder)
    record = plan_record(plan, encoder, hashes)
    arrays, record = read_or_make(
        Path(folder),
        lambda: _encode_images(plan, encoder, sources, index, workers),
        format=FORMAT,
        version=VERSION,
        wanted={name: value for name, value in record.items() if name not in ("split", "seed", "mpp")},
    )
    zeros = np.zeros(len(arrays["cls"]), np.int64)
    split = _split(plan, arrays, record["groups"])
    about = (mosaic_classes(plan), plan.patch_size, plan.mpp, hashes)
    columns = (arrays["features"], arrays["cls"], zeros, zeros, split, arrays["group"], None)
    return PatchBank(plan, encoder, *columns, *about)


def index_of(patches: Sequence[str | Path], index: str | None = None) -> Path | None:
    """The table of groups: `index`, or index.csv in or beside the patches. Raises InputError if there are two."""
    if index is not None:
        return Path(index)
    candidates = {path / "index.csv" for given in map(Path, patches) for path in (given, given.parent)}
    found = sorted(path for path in candidates if path.is_file())
    if len(found) > 1:
        raise InputError(f"mosaic: {found[0]} and {found[1]} could both be the index; name one with --bank.index")
    return found[0] if found else None


def _encode_images(
    plan: MosaicBankPlan, encoder: EncoderVersion, sources: Sequence[Path], index: Path | None, workers: int | None
) -> tuple[Arrays, dict[str, Any]]:
    """Features, class and group of every patch that can be read, and what bank.json says about them."""
    classes = mosaic_classes(plan).names
    images, others = find_images(sources, classes, index)
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    results = in_parallel(
        "encoding patches", [delayed(_encode_batch)(plan, encoder, batch) for batch in batches], workers
    )
    kept = [image for _, read, _ in results for image in read]
    broken = {name: reason for _, _, reasons in results for name, reason in reasons.items()}
    if not kept:
        raise InputError(f"mosaic: none of {len(images)} patches can be read; the first: {next(iter(broken.values()))}")
    groups = sorted({image.group for image in kept})
    number = {group: position for position, group in enumerate(groups)}
    arrays = {
        "features": np.concatenate([features for features, read, _ in results if read]),
        "cls": np.array([classes.index(image.cls) for image in kept], np.int64),
        "group": np.array([number[image.group] for image in kept], np.int64),
    }
    return arrays, {
        "classes": list(classes),
        "patches": dict(Counter(image.cls for image in kept)),
        "groups_from": index.name if index else "none: each patch is its own group",
        "groups": groups,
        "broken": broken,
        "other_classes": others,
    }


def _encode_batch(
    plan: MosaicBankPlan, encoder: EncoderVersion, images: Sequence[LabelledImage]
) -> tuple[np.ndarray, list[LabelledImage], dict[str, str]]:
    """Features of the images that can be read, those images, and why the others cannot."""
    pixels, read, broken = read_patches(images, plan.patch_size, resize=plan.resize)
    features = encode(plan.encoder, encoder, np.stack(pixels)) if pixels else np.empty((0, 0), np.float32)
    return features, read, broken


def read_patches(
    images: Iterable[LabelledImage], side: int, *, resize: bool = False
) -> tuple[list[NDArray[np.uint8]], list[LabelledImage], dict[str, str]]:
    """Pixels of the images that can be read, uint8 [side, side, 3], those images, and why the others cannot."""
    pixels, read, broken = [], [], {}
    for image, found in read_images(images, side, resize=resize):
        if isinstance(found, SlideError):
            broken[image.name] = found.reason
        else:
            pixels.append(found)
            read.append(image)
    return pixels, read, broken


def _split(plan: MosaicBankPlan, arrays: Arrays, groups: Sequence[str]) -> np.ndarray:
    """The split of every row, an index in SPLITS. Groups are spread over five parts: one is test, the next val."""
    classes = mosaic_classes(plan).names
    part = np.full(len(groups), -1)
    numbers = {name: number for number, name in enumerate(groups)}
    of_class = [np.unique(arrays["group"][arrays["cls"] == cls]) for cls in range(len(classes))]
    for cls in sorted(range(len(classes)), key=lambda cls: len(of_class[cls])):  # fewest groups first
        members = of_class[cls]
        sizes = np.bincount(part[members][part[members] >= 0], minlength=SPLITS_OF_GROUPS)
        for name in shuffled([groups[group] for group in members if part[group] < 0], plan.seed, "mosaic", cls):
            smallest = sizes.argmin()
            part[numbers[name]] = smallest
            sizes[smallest] += 1
        if sizes.min() == 0:
            raise InputError(
                f"mosaic: class {classes[cls]!r} has {len(members)} groups, which cannot be divided into "
                f"{SPLITS_OF_GROUPS} parts: there are too few, or too many of them also have patches of other classes"
            )
    turned = (part[arrays["group"]] - plan.split) % SPLITS_OF_GROUPS
    return np.where(turned == 0, 2, np.where(turned == 1, 1, 0)).astype(np.int64)
