"""Mosaics: the layouts of phantom slides filled with real labelled patches.

A mosaic is no slide: neighbouring patches come from different places. What is real is the texture of each patch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from safetensors.numpy import load_file, save_file

from abbe.console import progress
from abbe.data.labelled_images import LabelledImage, expand, find_images, read_images, sources_sha256
from abbe.errors import InputError, SlideError
from abbe.phantom.bank import EncoderMark, PatchBank, encode, encoder_mark
from abbe.phantom.classes import TissueClasses
from abbe.phantom.draw import shuffled
from abbe.phantom.settings import SPLITS_OF_GROUPS, MosaicBankPlan
from abbe.store import commit
from abbe.store.resume import read_previous_record

FORMAT, VERSION = "abbe-mosaic-bank", 1
_BATCH = 64


def mosaic_classes(plan: MosaicBankPlan) -> TissueClasses:
    """The classes of a mosaic: the rest first, then a and b."""
    count = len(plan.rest)
    return TissueClasses((*plan.rest, plan.a, plan.b), tuple(range(count)), (count,), (count + 1,))


def mosaic_bank(plan: MosaicBankPlan, folder: str | Path, *, workers: int | None = None) -> PatchBank:
    """The bank of this plan in `folder`: read if it is there and whole, encoded otherwise.

    Splits are drawn on reading, so one folder serves all five. A group is what the index says: the same name is the
    same group in every class, and never serves two of train, val and test. Patches that cannot be decoded are left
    out and named in bank.json. Raises InputError where `folder` holds another bank, for patches of another size, and
    where a class has too few groups for five parts.
    """
    folder = Path(folder)
    sources = expand(plan.patches)
    if not sources:
        raise InputError("mosaic: no patches given; name a folder or zips")
    index = index_of(plan)
    hashes = sources_sha256(sources, index)
    empty = np.empty(0, np.int64)
    mark = encoder_mark(plan.encoder)
    bank = PatchBank(
        plan, mark, empty, empty, empty, empty, empty, empty, mosaic_classes(plan), plan.patch_size, plan.mpp, hashes
    )
    wanted = {name: value for name, value in bank.described().items() if name not in ("split", "seed", "mpp")}
    tensors, record = folder / "bank.safetensors", folder / "bank.json"
    known = read_previous_record(record, format=FORMAT, version=VERSION, key="plan", wanted=wanted)
    if known is None or not commit.is_done(tensors):
        known = _encode(plan, mark, sources, index, tensors, workers or os.cpu_count() or 1)
        commit.write_json(record, {"plan": wanted, **known}, format=FORMAT, version=VERSION)
    arrays = load_file(tensors)
    zeros = np.zeros(len(arrays["cls"]), np.int64)
    return replace(
        bank,
        features=arrays["features"],
        cls=arrays["cls"],
        site=zeros,
        setting=zeros,
        split=_split(plan, arrays, known["groups"]),
        group=arrays["group"],
    )


def index_of(plan: MosaicBankPlan) -> Path | None:
    """The table of groups: the one named, or an index.csv in or beside the patches. InputError where there are two."""
    if plan.index is not None:
        return Path(plan.index)
    beside = {path / "index.csv" for given in plan.patches for path in (Path(given), Path(given).parent)}
    found = sorted(path for path in beside if path.is_file())
    if len(found) > 1:
        raise InputError(f"mosaic: {found[0]} and {found[1]} could both be the index; say which with --bank.index")
    return found[0] if found else None


def _encode(
    plan: MosaicBankPlan, mark: EncoderMark, sources: Sequence[Path], index: Path | None, tensors: Path, workers: int
) -> dict[str, Any]:
    """Commit features, cls and group of every patch; returns what bank.json says of them."""
    classes = mosaic_classes(plan).names
    images, others = find_images(sources, classes, index)
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    features: list[np.ndarray] = []
    kept: list[LabelledImage] = []
    broken: dict[str, str] = {}
    with progress("encoding patches", len(batches)) as bar:
        jobs = (delayed(_encode_batch)(plan, mark, batch) for batch in batches)
        for rows, whole, reasons in Parallel(n_jobs=workers, return_as="generator")(jobs):
            features.append(rows)
            kept += whole
            broken |= reasons
            bar.advance(bar.task_ids[0])
    if not kept:
        raise InputError(f"mosaic: none of {len(images)} patches can be read; the first: {next(iter(broken.values()))}")
    groups = sorted({image.group for image in kept})
    number = {group: position for position, group in enumerate(groups)}
    arrays = {
        "features": np.ascontiguousarray(np.concatenate([rows for rows in features if len(rows)])),
        "cls": np.array([classes.index(image.cls) for image in kept], np.int64),
        "group": np.array([number[image.group] for image in kept], np.int64),
    }
    with commit.commit(tensors, format=FORMAT, version=VERSION) as temporary:
        save_file(arrays, temporary)
    return {
        "classes": list(classes),
        "patches": dict(Counter(image.cls for image in kept)),
        "groups_from": index.name if index else "none: each patch is its own group",
        "groups": groups,
        "broken": broken,
        "other_classes": others,
    }


def _encode_batch(
    plan: MosaicBankPlan, mark: EncoderMark, images: Sequence[LabelledImage]
) -> tuple[np.ndarray, list[LabelledImage], dict[str, str]]:
    """Features of the images that can be read, those images, and why the others cannot."""
    pixels, whole, broken = [], [], {}
    for image, found in read_images(images, plan.patch_size, resize=plan.resize):
        if isinstance(found, SlideError):
            broken[image.name] = found.reason
        else:
            pixels.append(found)
            whole.append(image)
    if not pixels:
        return np.empty((0, 0), np.float32), [], broken
    return encode(plan.encoder, mark, np.stack(pixels)), whole, broken


def _split(plan: MosaicBankPlan, arrays: dict[str, np.ndarray], groups: Sequence[str]) -> np.ndarray:
    """0, 1 or 2 of every row. Groups are dealt to five parts, class by class: one part is test, the next val."""
    part = np.full(len(groups), -1)
    numbers = {name: number for number, name in enumerate(groups)}
    of_class = [np.unique(arrays["group"][arrays["cls"] == cls]) for cls in range(len(mosaic_classes(plan).names))]
    for cls in sorted(range(len(of_class)), key=lambda cls: len(of_class[cls])):  # the class with least choice first
        here = of_class[cls]
        dealt = np.bincount(part[here][part[here] >= 0], minlength=SPLITS_OF_GROUPS)
        for name in shuffled([groups[group] for group in here if part[group] < 0], plan.seed, "mosaic", cls):
            to = dealt.argmin()  # the part with fewest of this class's groups
            part[numbers[name]] = to
            dealt[to] += 1
        if dealt.min() == 0:
            raise InputError(
                f"mosaic: class {mosaic_classes(plan).names[cls]!r} has {len(here)} groups, too few or too much shared "
                f"with other classes for {SPLITS_OF_GROUPS} parts"
            )
    turned = (part[arrays["group"]] - plan.split) % SPLITS_OF_GROUPS
    return np.where(turned == 0, 2, np.where(turned == 1, 1, 0)).astype(np.int64)
