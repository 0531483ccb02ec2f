"""Artefacts of slides: patches out of focus, under a pen, in a fold; and cohorts with a share of them strewn in.

A learned condenser may spend its tokens on what strikes the eye and says nothing. Whether it does can be counted where
it is known which patches are artefacts.
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
from abbe.data.labelled_images import expand, find_images, read_images
from abbe.errors import InputError, SlideError
from abbe.phantom.bank import PatchBank
from abbe.phantom.mosaic import index_of
from abbe.phantom.settings import MosaicBankPlan
from abbe.slides.patch_encoders import create_patch_encoder
from abbe.store import commit
from abbe.store.bags import read_bag, write_bag
from abbe.store.resume import plain, read_previous_record

KINDS = ("out of focus", "pen", "fold")
FORMAT, VERSION = "abbe-artefacts", 1
_INKS = np.array([[30, 50, 150], [20, 110, 60], [25, 25, 30]], np.float32)  # blue, green and black markers

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ArtefactRows:
    """Encoded artefacts. features: [M, D] float32; split: [M] int64, a number of SPLITS; encoder: its name."""

    features: np.ndarray
    split: np.ndarray
    encoder: str


def spoiled(patch: Pixels, kind: str, rng: np.random.Generator) -> Pixels:
    """The patch, uint8 [h, w, 3], with an artefact of this kind."""
    height, width = patch.shape[:2]
    image = patch.astype(np.float32)
    if kind == "out of focus":
        sigma = rng.uniform(0.015, 0.03) * width  # 4 to 8 pixels of 256: nuclei blur into each other
        return np.clip(ndimage.gaussian_filter(image, (sigma, sigma, 0)), 0, 255).astype(np.uint8)
    band = _band(height, width, rng)[..., None]
    if kind == "pen":
        ink, cover = _INKS[rng.integers(len(_INKS))], rng.uniform(0.6, 0.9)
        return np.clip(image * (1 - cover * band) + ink * cover * band, 0, 255).astype(np.uint8)
    if kind == "fold":  # two layers of tissue: what each lets through is multiplied
        other = np.roll(image[:, ::-1], int(rng.integers(height)), axis=0)
        return np.clip(image * (1 - band * (1 - other / 255)), 0, 255).astype(np.uint8)
    raise InputError(f"artefacts: unknown kind {kind!r}; expected one of {', '.join(KINDS)}")


def artefact_rows(images: Sequence[Sequence[Pixels]], *, encoder: str, seed: int) -> ArtefactRows:
    """Spoil and encode patches: images[s] are those of SPLITS[s], which stay in that split. Kinds take turns."""
    encode = create_patch_encoder(encoder)
    made = [
        spoiled(image, KINDS[number % len(KINDS)], np.random.default_rng([seed, split, number]))
        for split, patches in enumerate(images)
        for number, image in enumerate(patches)
    ]
    split = np.repeat(np.arange(len(images)), [len(patches) for patches in images])
    return ArtefactRows(np.asarray(encode(np.stack(made)), np.float32), split, encoder)


def real_images(rows: PatchBank, folder: Path, count: int) -> list[list[Pixels]]:
    """About `count` real patches without tumour for each split, evenly over a mosaic's bank, to be spoiled.

    folder: where the bank lies; its record says which group has which number.
    """
    plan = rows.plan
    assert isinstance(plan, MosaicBankPlan)
    assert rows.group is not None
    names = json.loads((folder / "bank.json").read_text(encoding="utf-8"))["groups"]
    split_of = {names[group]: int(split) for group, split in zip(rows.group, rows.split, strict=True)}
    images, _ = find_images(expand(plan.patches), plan.rest, index_of(plan))
    chosen: list[list[Pixels]] = []
    for split in range(len(SPLITS)):
        of_split = [image for image in images if split_of.get(image.group) == split]
        picked = of_split[:: max(1, len(of_split) // count)][:count]
        read = read_images(picked, plan.patch_size, resize=plan.resize)
        chosen.append([pixels for _, pixels in read if not isinstance(pixels, SlideError)])
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
    """Copy a cohort's bags to `out`, a share of each slide's patches replaced by artefacts; never those of evidence.

    cohort: folder with labels.csv and truth/patches.parquet.   features: its feature files.   evidence: the classes
    that the label rests on.   make: gives the artefacts, where they are needed. Returns the patches replaced: columns
    slide_id, row. Found whole, they are read back.
    Raises InputError where `out` was made otherwise, or a slide has too few patches besides its evidence.
    """
    wanted = plain({"share": share, "seed": seed, "labels": commit.file_sha256(cohort / "labels.csv")})
    where, record = out / "artefacts.parquet", out / "artefacts.json"
    labels = pd.read_csv(cohort / "labels.csv", dtype=str)
    known = read_previous_record(record, format=FORMAT, version=VERSION, key="parameters", wanted=wanted)
    if known and all(map(commit.is_done, [where, *(out / f"{name}.h5" for name in labels["slide_id"])])):
        return pd.read_parquet(where)
    rows = make()
    truth = pd.read_parquet(cohort / "truth" / "patches.parquet")
    classes = truth.groupby(truth["slide_id"].astype(str), sort=False)["class"]
    chosen: list[pd.DataFrame] = []
    with progress("strewing artefacts", len(labels)) as bar:
        for slide_id, split in zip(labels["slide_id"], labels["split"], strict=True):
            rng = np.random.default_rng([seed, *slide_id.encode()])
            bag = read_bag(features / f"{slide_id}.h5")
            at = np.flatnonzero(~np.isin(classes.get_group(slide_id).to_numpy(), list(evidence)))
            count = round(share * len(bag))
            if count > len(at):
                raise InputError(f"{slide_id}: {len(at)} patches besides its evidence, {count} artefacts asked for")
            at = np.sort(rng.choice(at, count, replace=False))
            drawn = rng.choice(np.flatnonzero(rows.split == SPLITS.index(split)), count)
            mixed = bag.features.clone()  # what was read may be a file mapped into memory
            mixed[at] = torch.from_numpy(rows.features[drawn]).to(mixed.dtype)
            write_bag(out / f"{slide_id}.h5", replace(bag, features=mixed))
            chosen.append(pd.DataFrame({"slide_id": slide_id, "row": at}))
            bar.advance(bar.task_ids[0])
    table = pd.concat(chosen, ignore_index=True)
    with commit.commit(where, format=FORMAT, version=VERSION) as temporary:
        table.to_parquet(temporary, index=False)
    about: dict[str, Any] = {"parameters": wanted, "kinds": list(KINDS), "patches": len(table)}
    commit.write_json(record, about, format=FORMAT, version=VERSION)
    return table


def _band(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A soft-edged stroke across the patch, float32 [h, w] in 0..1, covering a third to all of it."""
    angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15)
    y, x = np.mgrid[0:height, 0:width]
    along = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle) - offset
    edge = (rng.uniform(0.2, 0.5) - np.abs(along)) / 0.02
    return np.clip(edge, 0, 1).astype(np.float32)
