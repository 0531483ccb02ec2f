"""Cohorts on disk: slides drawn from a bank, or rendered whole; their labels, truth and texts, under one record."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from PIL import Image

from abbe.console import progress
from abbe.data import SPLITS
from abbe.errors import InputError, StoreError
from abbe.phantom.bank import SETTINGS, PatchBank
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.describe import label_by_median, label_of, labels_table, patches_of_slide, truth_of
from abbe.phantom.layout import Layout
from abbe.phantom.plan import Patient, necrosis_shares, patches_of, patients, slide_id
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import site_stain
from abbe.phantom.scores import difficulty
from abbe.phantom.settings import LABELS, BankPlan, CohortPlan
from abbe.phantom.tasks import task_layout
from abbe.phantom.texts.texts import write_texts
from abbe.slides.patch_encoders.timm import safe_name
from abbe.store import commit
from abbe.store.resume import plain, read_previous_record
from abbe.store.trident import features_path, write_features
from abbe.types import MPP, Bag, Px0

FORMAT, PLAN_FORMAT, VERSION = "abbe-cohort", "abbe-cohort-plan", 2
_NEEDED = {"mixture": "necrosis", "spatial": "lymphocytes"}


@dataclass(frozen=True)
class _Slide:
    """One slide to be made: the `count`-th of a split."""

    split: int
    count: int
    patient: Patient
    necrosis: float

    @property
    def slide_id(self) -> str:
        return slide_id(self.split, self.count)


@dataclass(frozen=True, eq=False)
class _Made:
    """A slide that was made: its true layout, and the bank row of each patch where it was drawn."""

    slide: _Slide
    layout: Layout
    bank_rows: np.ndarray | None


def write_cohort(out: str | Path, plan: CohortPlan, rows: PatchBank, *, texts: bool = False) -> dict[str, Any]:
    """Write a cohort of feature files, or find it whole; returns what cohort.json holds.

    What is missing or torn is made again, which gives the same bytes. texts: reports and questions too.
    Raises InputError where `out` holds a cohort of another plan (a part of one counts), and where the bank lacks a
    class that the task needs; StoreError where its tables were changed since.
    """
    out = Path(out)
    if plan.task in _NEEDED:
        rows.kinds.number(_NEEDED[plan.task])
    if texts and rows.kinds != PHANTOM:
        raise InputError("texts are composed from the rendered classes; a mosaic has none")
    parameters = plain({"level": "features", "plan": asdict(plan), "bank": rows.described()})
    folder = features_folder(out, rows.encoder.name, rows.job)
    slides = _slides(plan, rows.sites, rows.settings)
    record = _start(out, parameters)
    if record is not None and _is_whole(out, record, [folder / f"{s.slide_id}.h5" for s in slides], texts=texts):
        return record
    about = {
        "filling": rows.filling,
        "features": str(folder.relative_to(out)),
        "difficulty": difficulty(rows),
    }
    made = (_draw_slide(out, plan, rows, slide) for slide in slides)
    return _finish(out, plan, parameters, rows.kinds, made, about, texts=texts)


def write_pixel_cohort(
    out: str | Path, plan: CohortPlan, bank: BankPlan, *, texts: bool = False, workers: int | None = None
) -> dict[str, Any]:
    """Write the same slides as whole-slide images, or find them whole; returns what cohort.json holds.

    Patients, layouts and labels are those of the feature cohort of the same plans; truth and labels are counted anew
    from the map of majority classes, which the ragged borders of regions may shift by a few patches. Whole slides
    of an earlier run are kept. Raises as write_cohort does.
    """
    out = Path(out)
    parameters = plain({"level": "pixels", "plan": asdict(plan), "bank": {"sites": bank.sites, "seed": bank.seed}})
    slides = _slides(plan, bank.sites, SETTINGS)
    record = _start(out, parameters)
    files = [path for slide in slides for path in _pixel_files(out, slide.slide_id)]
    if record is not None and _is_whole(out, record, files, texts=texts):
        return record
    jobs = (delayed(_render_slide)(out, plan, bank.seed, slide) for slide in slides)
    made = Parallel(n_jobs=workers or os.cpu_count() or 1, return_as="generator")(jobs)
    return _finish(out, plan, parameters, PHANTOM, made, {"filling": "phantom"}, texts=texts)


def features_folder(out: str | Path, encoder: str, job: str = "20x_256px_0px_overlap") -> Path:
    """Where a cohort's feature files lie; `job` is that of its bank, here of a rendered one.

    encoder: the name of a patch encoder, or what it is made from (`timm:MODEL`), which is no folder's name.
    """
    family, made, model = encoder.partition(":")
    return features_path(Path(out) / job, safe_name(family, model) if made else encoder, "x").parent


def _slides(plan: CohortPlan, sites: int, settings: int) -> list[_Slide]:
    found = []
    for split in range(len(SPLITS)):
        shares = necrosis_shares(plan, split)
        of = patients(plan, split, sites=sites, settings=settings)
        found += [_Slide(split, count, patient, float(shares[count])) for count, patient in enumerate(of)]
    return found


def _start(out: Path, parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier run; and the plan, kept before the first slide, so that no other continues it."""
    record = read_previous_record(
        out / "cohort.json", format=FORMAT, version=VERSION, key="parameters", wanted=parameters
    )
    path = out / "plan.json"
    if read_previous_record(path, format=PLAN_FORMAT, version=VERSION, key="parameters", wanted=parameters) is None:
        commit.write_json(path, {"parameters": parameters}, format=PLAN_FORMAT, version=VERSION)
    return record


def _is_whole(out: Path, record: dict[str, Any], slides: Iterable[Path], *, texts: bool) -> bool:
    """Whether every file of the cohort is there; StoreError where a table is not the one that was written."""
    tables = {"labels.csv": record["labels_sha256"], "truth/patches.parquet": record["truth_sha256"]}
    tables |= record["texts"]
    for name, digest in tables.items():
        if (out / name).is_file() and commit.file_sha256(out / name) != digest:
            raise StoreError(f"{out / name}: changed since the cohort was made; remove it and run the command again")
    if texts and not record["texts"]:
        return False
    return all((out / name).is_file() for name in tables) and all(map(_has_its_size, slides))


def _has_its_size(path: Path) -> bool:
    """Whether a file is as long as it was; gigabytes are not hashed for it: HDF5's own checksums guard the contents."""
    sidecar = commit.read_sidecar(path)
    return path.is_file() and sidecar is not None and path.stat().st_size == sidecar["size"]


def _draw_slide(out: Path, plan: CohortPlan, rows: PatchBank, slide: _Slide) -> _Made:
    """Rows of the bank in the slide's layout, as one feature file."""
    patient = slide.patient
    rng, n = patches_of(plan, patient, slide.count)
    layout = task_layout(plan, rows.kinds, rng, n, patient, slide.necrosis)
    classes = layout.patch_classes
    drawn = np.empty(n, dtype=np.int64)
    for cls in np.unique(classes):
        here = classes == cls
        cell = rows.rows(cls=int(cls), site=patient.site, setting=patient.setting, split=slide.split)
        drawn[here] = rng.choice(cell, size=int(here.sum()))
    path = features_folder(out, rows.encoder.name, rows.job) / f"{slide.slide_id}.h5"
    if not _has_its_size(path):
        size, (down, across) = rows.patch_size, layout.shape
        bag = Bag(
            torch.from_numpy(rows.features[drawn]).half(),
            torch.from_numpy(layout.coords * size).double(),
            Px0(size),
            slide.slide_id,
            mpp=None if rows.mpp is None else MPP(rows.mpp),
            level0_size=(across * size, down * size),
            encoder=rows.encoder.name,
        )
        write_features(path, bag)
    return _Made(slide, layout, drawn)


def _pixel_files(out: Path, name: str) -> tuple[Path, ...]:
    return out / "slides" / f"{name}.tiff", out / "truth" / f"{name}.png", out / "truth" / f"{name}.json"


def _render_slide(out: Path, plan: CohortPlan, seed: int, slide: _Slide) -> _Made:
    """One whole-slide image; its layout is read back from the truth map, which says what was painted."""
    patient, files = slide.patient, _pixel_files(out, slide.slide_id)
    if not all(map(commit.is_done, files)):
        rng, n = patches_of(plan, patient, slide.count)
        layout = task_layout(plan, PHANTOM, rng, n, patient, slide.necrosis)
        stain = site_stain(patient.site, patient.setting, seed)
        write_phantom_slide(out, slide.slide_id, layout, stain=stain, seed=int(rng.integers(2**31)))
    with Image.open(files[1]) as image:
        return _Made(slide, Layout(np.array(image)), None)


def _finish(
    out: Path,
    plan: CohortPlan,
    parameters: dict[str, Any],
    kinds: TissueClasses,
    slides: Iterable[_Made],
    about: dict[str, Any],
    *,
    texts: bool,
) -> dict[str, Any]:
    """Make the slides, then labels, truth, texts and record."""
    labels, truths, patches = [], [], []
    total = sum(plan.slides)
    with progress("making slides", total) as bar:
        for made in slides:
            slide, layout = made.slide, made.layout
            labels.append(label_of(plan, kinds, slide.slide_id, slide.split, slide.patient, layout))
            patches.append(patches_of_slide(slide.slide_id, layout, made.bank_rows))
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
        "classes": list(kinds.names),
        "kinds": {"rest": list(kinds.rest), "a": list(kinds.a), "b": list(kinds.b)},
        "labels": list(LABELS[plan.task]),
        "slides": total,
        "labels_sha256": commit.file_sha256(out / "labels.csv"),
        "truth_sha256": commit.file_sha256(out / "truth" / "patches.parquet"),
        "texts": write_texts(out, truths, seed=plan.seed) if texts else {},
        **about,
    }
    commit.write_json(out / "cohort.json", record, format=FORMAT, version=VERSION)
    return record
