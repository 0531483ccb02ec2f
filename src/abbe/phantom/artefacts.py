"""Artefacts of slides: patches that are out of focus, under pen ink or in a fold, and cohorts with a share of them.

A learned condenser may spend its tokens on patches that are conspicuous but carry no information. Where it is known
which patches are artefacts, this can be counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage

from abbe.console import progress
from abbe.data import SPLITS
from abbe.data.labelled_images import expand, find_images
from abbe.errors import InputError
from abbe.phantom.bank import PatchBank
from abbe.phantom.mosaic import index_of, read_patches
from abbe.phantom.render.capture import through_jpeg
from abbe.phantom.render.stain import Stain
from abbe.phantom.settings import MosaicBankPlan
from abbe.slides.patch_encoders import create_patch_encoder
from abbe.store import commit
from abbe.store.bags import read_bag, write_bag
from abbe.store.resume import plain, read_previous_record

KINDS = ("out of focus", "pen", "fold")
JPEG = Stain()
"""what the JPEG of artefacts is"""
FORMAT, VERSION = "abbe-artefacts", 2
_INKS = np.array([[30, 50, 150], [20, 110, 60], [25, 25, 30]], np.float32)  # blue, green and black markers

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ArtefactRows:
    """Encoded artefacts. features: [M, D] float32.  split: [M] int64, index in SPLITS.  encoder: its name."""

    features: np.ndarray
    split: np.ndarray
    encoder: str


def with_artefact(patch: Pixels, kind: str, rng: np.random.Generator) -> Pixels:
    """A copy of the patch, uint8 [h, w, 3], with an artefact. kind: one of KINDS."""
    height, width = patch.shape[:2]
    image = patch.astype(np.float32)
    if kind == "out of focus":
        sigma = rng.uniform(0.015, 0.03) * width  # 4 to 8 of 256 pixels: nuclei blur into each other
        return np.clip(ndimage.gaussian_filter(image, (sigma, sigma, 0)), 0, 255).astype(np.uint8)
    band = _band(height, width, rng)[..., None]
    if kind == "pen":
        ink, cover = _INKS[rng.integers(len(_INKS))], rng.uniform(0.6, 0.9)
        return np.clip(image * (1 - cover * band) + ink * cover * band, 0, 255).astype(np.uint8)
    if kind == "fold":  # two layers of tissue: their transmittances multiply
        other = np.roll(image[:, ::-1], int(rng.integers(height)), axis=0)
        return np.clip(image * (1 - band * (1 - other / 255)), 0, 255).astype(np.uint8)
    raise InputError(f"artefacts: unknown kind {kind!r}; expected one of {', '.join(KINDS)}")


def encode_artefacts(images: Sequence[Sequence[Pixels]], *, encoder: str, seed: int) -> ArtefactRows:
    """Encoded copies of patches with artefacts, kinds alternating. images[s]: the patches of SPLITS[s].

    Artefacts are on the glass, so the copies go through JPEG as everything on a slide does.
    """
    encode = create_patch_encoder(encoder)
    patches = [
        through_jpeg(
            with_artefact(image, KINDS[number % len(KINDS)], np.random.default_rng([seed, split, number])), JPEG
        )
        for split, of_split in enumerate(images)
        for number, image in enumerate(of_split)
    ]
    split = np.repeat(np.arange(len(images)), [len(of_split) for of_split in images])
    return ArtefactRows(np.asarray(encode(np.stack(patches)), np.float32), split, encoder)


def read_normal_patches(bank: PatchBank, folder: Path, count: int) -> list[list[Pixels]]:
    """About `count` patches without tumour for each split, evenly spaced over the images of a mosaic's bank.

    folder: of the bank; its record names the groups.
    """
    plan = bank.plan
    assert isinstance(plan, MosaicBankPlan)
    assert bank.group is not None
    names = json.loads((folder / "bank.json").read_text(encoding="utf-8"))["groups"]
    split_of = {names[group]: int(split) for group, split in zip(bank.group, bank.split, strict=True)}
    images, _ = find_images(expand(plan.patches), plan.rest, index_of(plan.patches, plan.index))
    chosen: list[list[Pixels]] = []
    for split in range(len(SPLITS)):
        of_split = [image for image in images if split_of.get(image.group) == split]
        spaced = of_split[:: max(1, len(of_split) // count)][:count]
        chosen.append(read_patches(spaced, plan.patch_size, resize=plan.resize)[0])
    return chosen


def add_artefacts(
    cohort: Path,
    features: Path,
    out: Path,
    make: Callable[[], ArtefactRows],
    *,
    evidence: Collection[int],
    share: float,
    seed: int,
) -> pd.DataFrame:
    """Copy a cohort's bags to `out` with a share of each slide's patches replaced by artefacts, but no evidence.

    cohort: folder with labels.csv and truth/patches.parquet.  features: folder of its feature files.  evidence: the
    classes that the label depends on.  make: called for the artefacts unless `out` is complete already.
    Returns the patches replaced: columns slide_id, row. Raises InputError if `out` was made with other parameters, or
    a slide has too few patches that are not evidence.
    """
    wanted = plain({"share": share, "seed": seed, "labels": commit.file_sha256(cohort / "labels.csv")})
    path, record = out / "artefacts.parquet", out / "artefacts.json"
    labels = pd.read_csv(cohort / "labels.csv", dtype=str)
    known = read_previous_record(record, format=FORMAT, version=VERSION, key="parameters", wanted=wanted)
    if known and all(map(commit.is_done, [path, *(out / f"{name}.h5" for name in labels["slide_id"])])):
        return pd.read_parquet(path)
    artefacts = make()
    truth = pd.read_parquet(cohort / "truth" / "patches.parquet")
    classes = truth.groupby(truth["slide_id"].astype(str), sort=False)["class"]
    replaced: list[pd.DataFrame] = []
    with progress("adding artefacts", len(labels)) as bar:
        for slide_id, split in zip(labels["slide_id"], labels["split"], strict=True):
            rng = np.random.default_rng([seed, *slide_id.encode()])
            bag = read_bag(features / f"{slide_id}.h5")
            free = np.flatnonzero(~np.isin(classes.get_group(slide_id).to_numpy(), list(evidence)))
            count = round(share * len(bag))
            if count > len(free):
                raise InputError(f"{slide_id}: {count} artefacts do not fit into {len(free)} patches without evidence")
            rows = np.sort(rng.choice(free, count, replace=False))
            drawn = rng.choice(np.flatnonzero(artefacts.split == SPLITS.index(split)), count)
            mixed = bag.features.clone()  # the bag may be mapped from its file
            mixed[rows] = torch.from_numpy(artefacts.features[drawn]).to(mixed.dtype)
            write_bag(out / f"{slide_id}.h5", replace(bag, features=mixed))
            replaced.append(pd.DataFrame({"slide_id": slide_id, "row": rows}))
            bar.advance(bar.task_ids[0])
    table = pd.concat(replaced, ignore_index=True)
    with commit.commit(path, format=FORMAT, version=VERSION) as temporary:
        table.to_parquet(temporary, index=False)
    about: dict[str, Any] = {"parameters": wanted, "kinds": list(KINDS), "patches": len(table)}
    commit.write_json(record, about, format=FORMAT, version=VERSION)
    return table


def _band(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A soft-edged stroke across the patch, float32 [h, w] in [0, 1], over a third to all of it."""
    angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15)
    y, x = np.mgrid[0:height, 0:width]
    along = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle) - offset
    edge = (rng.uniform(0.2, 0.5) - np.abs(along)) / 0.02
    return np.clip(edge, 0, 1).astype(np.float32)
