"""Cohorts on disk: slides drawn from a bank or rendered whole, their labels, truth and texts, and one record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from PIL import Image

from abbe.console import progress
from abbe.errors import InputError, StoreError
from abbe.phantom.bank import SETTINGS, PatchBank
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.describe import label_by_median, label_of, labels_table, patch_table, truth_of
from abbe.phantom.layout import Layout
from abbe.phantom.plan import PlannedSlide, planned_slides
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import site_stain
from abbe.phantom.scores import difficulty
from abbe.phantom.settings import LABELS, PHANTOM_VERSION, BankPlan, CohortPlan, with_version
from abbe.phantom.tasks import slide_layout
from abbe.phantom.texts.texts import write_texts
from abbe.slides.patch_encoders.loading import safe_name
from abbe.store import commit
from abbe.store.resume import plain, read_previous_record
from abbe.store.trident import features_path, write_features
from abbe.types import MPP, Bag, Px0

FORMAT, PLAN_FORMAT, VERSION = "abbe-cohort", "abbe-cohort-plan", 2
_NEEDED = {"mixture": "necrosis", "spatial": "lymphocytes"}


class WrittenSlide(NamedTuple):
    """A slide on disk: its true layout, and of each patch its bank row (None at pixel level) and its purity."""

    slide: PlannedSlide
    layout: Layout
    bank_rows: np.ndarray | None = None
    purity: np.ndarray | None = None


def write_cohort(out: str | Path, plan: CohortPlan, bank: PatchBank, *, texts: bool = False) -> dict[str, Any]:
    """Write a cohort of feature files, or read it if it is complete; returns what cohort.json holds.

    Files that are missing or cut short are made again, with the same bytes. texts: write reports and questions too.
    Raises InputError if `out` holds a cohort of another plan, complete or not, and if the bank lacks a class that the
    task needs; StoreError if a table was changed.
    """
    out = Path(out)
    if plan.task in _NEEDED:
        bank.classes.number(_NEEDED[plan.task])
    if texts and bank.classes != PHANTOM:
        raise InputError("texts are composed from the rendered classes, which a mosaic does not have")
    parameters = plain({"level": "features", "plan": asdict(plan), "bank": bank.record()})
    folder = features_folder(out, bank.encoder.name, bank.job)
    slides = planned_slides(plan, sites=bank.sites, settings=bank.settings)
    files = [folder / f"{slide.slide_id}.h5" for slide in slides]
    record = _read_complete_cohort(out, parameters, files, texts=texts)
    if record is not None:
        return record
    about = {"filling": bank.filling, "features": str(folder.relative_to(out)), "difficulty": difficulty(bank)}
    written = (_write_feature_slide(folder, plan, bank, slide) for slide in slides)
    return _write_tables(out, plan, parameters, bank.classes, written, about, texts=texts)


def write_pixel_cohort(
    out: str | Path, plan: CohortPlan, bank: BankPlan, *, texts: bool = False, workers: int | None = None
) -> dict[str, Any]:
    """Write the same slides as whole-slide images, or read them if complete; returns what cohort.json holds.

    Patients, layouts and labels are those of the feature cohort of the same plans. Truth and labels are counted from
    the map of majority classes, which the ragged borders of regions may shift by a few patches. Complete slides of an
    earlier run are kept. Raises as write_cohort does.
    """
    out = Path(out)
    about_bank = {"sites": bank.sites, "seed": bank.seed, "phantom_version": PHANTOM_VERSION}
    parameters = plain({"level": "pixels", "plan": asdict(plan), "bank": about_bank})
    slides = planned_slides(plan, sites=bank.sites, settings=SETTINGS)
    files = [path for slide in slides for path in _pixel_files(out, slide)]
    record = _read_complete_cohort(out, parameters, files, texts=texts)
    if record is not None:
        return record
    jobs = (delayed(_write_pixel_slide)(out, plan, bank.seed, slide) for slide in slides)
    written = Parallel(n_jobs=workers or os.cpu_count() or 1, return_as="generator")(jobs)
    return _write_tables(out, plan, parameters, PHANTOM, written, {"filling": "phantom"}, texts=texts)


def features_folder(out: str | Path, encoder: str, job: str = "20x_256px_0px_overlap") -> Path:
    """The folder of a cohort's feature files.

    encoder: name of a patch encoder, or the spec it is created from (`timm:MODEL`).  job: `PatchBank.job`; the default
    is that of every rendered bank.
    """
    family, colon, model = encoder.partition(":")
    return features_path(Path(out) / job, safe_name(family, model) if colon else encoder, "x").parent


def _read_complete_cohort(
    out: Path, parameters: dict[str, Any], files: Iterable[Path], *, texts: bool
) -> dict[str, Any] | None:
    """The record of the cohort in `out` if all its files are there; None if there is work to do.

    plan.json is written before the first slide, so that no run with other parameters continues an incomplete cohort.
    Raises StoreError if a table is not the one that was written.
    """
    about: dict[str, Any] = {"version": VERSION, "key": "parameters", "wanted": parameters, "earlier": _with_version}
    record = read_previous_record(out / "cohort.json", format=FORMAT, **about)
    path = out / "plan.json"
    if read_previous_record(path, format=PLAN_FORMAT, **about) is None:
        commit.write_json(path, {"parameters": parameters}, format=PLAN_FORMAT, version=VERSION)
    if record is None:
        return None
    tables = {"labels.csv": record["labels_sha256"], "truth/patches.parquet": record["truth_sha256"]} | record["texts"]
    for name, digest in tables.items():
        if (out / name).is_file() and commit.file_sha256(out / name) != digest:
            raise StoreError(f"{out / name}: changed since the cohort was made; remove it and run the command again")
    if texts and not record["texts"]:
        return None
    return record if all((out / name).is_file() for name in tables) and all(map(_has_its_size, files)) else None


def _with_version(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters whose bank states the version of its phantoms."""
    return {**parameters, "bank": with_version(parameters["bank"])}


def _has_its_size(path: Path) -> bool:
    """Whether a file has the size its sidecar states. Gigabytes are not hashed: HDF5 has checksums of its own."""
    sidecar = commit.read_sidecar(path)
    return path.is_file() and sidecar is not None and path.stat().st_size == sidecar["size"]


def _write_feature_slide(folder: Path, plan: CohortPlan, bank: PatchBank, slide: PlannedSlide) -> WrittenSlide:
    """Fill the slide's layout with rows of the bank and write them as one feature file."""
    layout, rng = slide_layout(plan, slide, bank.classes)
    classes = layout.patch_classes
    drawn = np.empty(len(classes), dtype=np.int64)
    for cls in np.unique(classes):
        here = classes == cls
        patient = slide.patient
        cell = bank.rows(cls=int(cls), site=patient.site, setting=patient.setting, split=slide.split)
        drawn[here] = rng.choice(cell, size=int(here.sum()))
    path = folder / f"{slide.slide_id}.h5"
    if not _has_its_size(path):
        size, (rows, columns) = bank.patch_size, layout.shape
        bag = Bag(
            torch.from_numpy(bank.features[drawn]).half(),
            torch.from_numpy(layout.coords * size).double(),
            Px0(size),
            slide.slide_id,
            mpp=None if bank.mpp is None else MPP(bank.mpp),
            level0_size=(columns * size, rows * size),
            encoder=bank.encoder.name,
        )
        write_features(path, bag)
    return WrittenSlide(slide, layout, drawn, None if bank.purity is None else bank.purity[drawn])


def _pixel_files(out: Path, slide: PlannedSlide) -> tuple[Path, Path, Path]:
    truth = out / "truth" / slide.slide_id
    return out / "slides" / f"{slide.slide_id}.tiff", truth.with_suffix(".png"), truth.with_suffix(".json")


def _write_pixel_slide(out: Path, plan: CohortPlan, seed: int, slide: PlannedSlide) -> WrittenSlide:
    """Write one whole-slide image; its layout is read back from the truth map, which says what was painted."""
    files = _pixel_files(out, slide)
    if not all(map(commit.is_done, files)):
        layout, rng = slide_layout(plan, slide)
        stain = site_stain(slide.patient.site, slide.patient.setting, seed)
        write_phantom_slide(out, slide.slide_id, layout, stain=stain, seed=int(rng.integers(2**31)))
    purity = np.array(json.loads(files[2].read_text(encoding="utf-8"))["purity"])
    with Image.open(files[1]) as image:
        painted = Layout(np.array(image))
    return WrittenSlide(slide, painted, purity=purity[painted.tissue])


def _write_tables(
    out: Path,
    plan: CohortPlan,
    parameters: dict[str, Any],
    classes: TissueClasses,
    slides: Iterable[WrittenSlide],
    about: dict[str, Any],
    *,
    texts: bool,
) -> dict[str, Any]:
    """Write labels, truth, texts and the record of these slides, which are written as they are iterated over."""
    labels, truths, patches = [], [], []
    total = sum(plan.slides)
    with progress("making slides", total) as bar:
        for slide, layout, bank_rows, purity in slides:
            labels.append(label_of(plan, classes, slide, layout))
            patches.append(patch_table(slide.slide_id, layout, bank_rows=bank_rows, purity=purity))
            if texts:
                truths.append(truth_of(labels[-1], layout, seed=plan.seed))
            bar.advance(bar.task_ids[0])
    if plan.task == "mixture":
        label_by_median(labels)
    commit.write_text(out / "labels.csv", labels_table(labels), format="labels")
    with commit.commit(out / "truth" / "patches.parquet", format="abbe-truth", version=VERSION) as temporary:
        pd.concat(patches, ignore_index=True).astype({"slide_id": "category"}).to_parquet(temporary, index=False)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": parameters,
        "classes": list(classes.names),
        "kinds": {"rest": list(classes.rest), "a": list(classes.a), "b": list(classes.b)},
        "labels": list(LABELS[plan.task]),
        "slides": total,
        "labels_sha256": commit.file_sha256(out / "labels.csv"),
        "truth_sha256": commit.file_sha256(out / "truth" / "patches.parquet"),
        "texts": write_texts(out, truths, seed=plan.seed) if texts else {},
        **about,
    }
    commit.write_json(out / "cohort.json", record, format=FORMAT, version=VERSION)
    return record
