"""The phantom cohort at feature level: slides whose truth is known patch by patch, in the files everybody reads.

Needle task: the subtype, a or b, of one tumour deposit that takes a fraction f of the slide's patches; everything else
is mixed at random and says nothing about it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from abbe.cohorts.bank import PATCH_SIZE, SETTINGS, BankPlan, PatchBank, bank
from abbe.cohorts.layout import needle_layout
from abbe.cohorts.records import earlier, plain
from abbe.cohorts.tables import SPLITS
from abbe.cohorts.tissue import MPP, TISSUE_CLASSES
from abbe.console import progress, result
from abbe.errors import InputError, StoreError
from abbe.store import commit
from abbe.store.trident import features_path, job_name, write_features
from abbe.types import Bag

FORMAT, PLAN_FORMAT, VERSION = "abbe-cohort", "abbe-cohort-plan", 1
NECROSIS = TISSUE_CLASSES.index("necrosis")


@dataclass(frozen=True)
class NeedlePlan:
    """A needle cohort. Patients have one or two slides; a patient has one site, one stain setting, one tumour."""

    fraction: float = 0.01
    """evidence: share of a slide's patches that are tumour (at least one patch)"""
    slides: tuple[int, int, int] = (300, 100, 200)
    """slides for train, val and test"""
    patches: int = 2000
    """patches a slide, on average; each slide has this ± 25 %"""
    seed: int = 0
    """of patients, layouts and draws from the bank"""

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise InputError(f"phantom: fraction must lie in (0, 1), got {self.fraction}")
        if len(self.slides) != len(SPLITS) or min(self.slides) < 2:
            raise InputError(f"phantom: slides needs at least two for each of {', '.join(SPLITS)}, got {self.slides}")
        if self.patches < 16:
            raise InputError(f"phantom: patches must be at least 16, got {self.patches}")
        if self.seed < 0:
            raise InputError(f"phantom: seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class PhantomCohort:
    """Make a cohort with known truth: features in TRIDENT layout, labels.csv, and the truth of every patch.

    Example:
      abbe cohort phantom --out cohort --plan.fraction 0.01
      abbe train classify --features cohort/20x_256px_0px_overlap/features_texture --labels cohort/labels.csv --out run
    """

    out: Path
    """folder of the cohort"""
    plan: NeedlePlan = field(default_factory=NeedlePlan)
    """the slides and their evidence"""
    bank: BankPlan = field(default_factory=BankPlan)
    """the rendered patches they are drawn from"""
    bank_folder: Path | None = None
    """where the rendered bank lies, to share it between cohorts (default: OUT/bank)"""
    workers: int | None = None
    """processes that render (default: one a core)"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        rows = bank(self.bank, self.bank_folder or self.out / "bank", workers=self.workers)
        record = write_needle_cohort(self.out, self.plan, rows)
        probe = record["difficulty"]["probe_a2_b2"]
        text = f"{record['slides']} slides in {self.out}; single-patch probe a2–b2 {probe:.3f}"
        result(text, record, json_output=self.json)
        return 0


def features_folder(out: str | Path, encoder: str) -> Path:
    """Where a cohort's feature files lie."""
    return features_path(Path(out) / job_name(MPP, PATCH_SIZE, 0), encoder, "x").parent


def write_needle_cohort(out: str | Path, plan: NeedlePlan, rows: PatchBank) -> dict[str, Any]:
    """Write a needle cohort, or find it whole; returns what cohort.json holds.

    What is missing or torn is made again, which gives the same bytes. Raises InputError where `out` holds a cohort of
    another plan (a part of one counts), StoreError where its tables were changed since.
    """
    out = Path(out)
    record_path, plan_path = out / "cohort.json", out / "plan.json"
    parameters = plain({"task": "needle", "needle": asdict(plan), "bank": asdict(rows.plan)})
    record = earlier(record_path, format=FORMAT, version=VERSION, key="parameters", wanted=parameters)
    # Written before the first slide, so that a run that was stopped half-way is not continued with another plan.
    if earlier(plan_path, format=PLAN_FORMAT, version=VERSION, key="parameters", wanted=parameters) is None:
        commit.write_json(plan_path, {"parameters": parameters}, format=PLAN_FORMAT, version=VERSION)
    if record is not None and _is_whole(out, plan, rows.plan.encoder, record):
        return record
    labels, truth = [], []
    total = sum(plan.slides)
    with progress("drawing slides", total) as bar:
        for split, count in enumerate(plan.slides):
            for number, patient in enumerate(_patients(plan, rows.plan, split, count)):
                label, classes, drawn = _write_slide(out, plan, rows, split, number, patient)
                labels.append(label)
                truth.append(pd.DataFrame({"slide_id": label["slide_id"], "class": classes, "bank_row": drawn}))
                bar.advance(bar.task_ids[0])
    commit.write_text(out / "labels.csv", pd.DataFrame(labels).to_csv(index=False), format="labels")
    with commit.commit(out / "truth" / "patches.parquet", format="abbe-truth", version=VERSION) as temporary:
        pd.concat(truth, ignore_index=True).astype({"slide_id": "category"}).to_parquet(temporary, index=False)
    made = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": parameters,
        "classes": list(TISSUE_CLASSES),
        "slides": total,
        "labels_sha256": commit.file_sha256(out / "labels.csv"),
        "truth_sha256": commit.file_sha256(out / "truth" / "patches.parquet"),
        "difficulty": difficulty(rows),
    }
    commit.write_json(record_path, made, format=FORMAT, version=VERSION)
    return made


def _slide_id(split: int, number: int) -> str:
    return f"{SPLITS[split]}-{number:04d}"


def _is_whole(out: Path, plan: NeedlePlan, encoder: str, record: dict[str, Any]) -> bool:
    """Whether every file of the cohort is there; StoreError where a table is not the one that was written."""
    tables = {out / "labels.csv": record["labels_sha256"], out / "truth" / "patches.parquet": record["truth_sha256"]}
    for path, digest in tables.items():
        if path.is_file() and commit.file_sha256(path) != digest:
            raise StoreError(f"{path}: changed since the cohort was made; remove it and run the command again")
    folder = features_folder(out, encoder)
    features = [
        folder / f"{_slide_id(split, number)}.h5" for split, count in enumerate(plan.slides) for number in range(count)
    ]
    return all(path.is_file() for path in tables) and all(map(_has_its_size, features))


def _has_its_size(path: Path) -> bool:
    """Whether a file is as long as it was; gigabytes are not hashed for it: HDF5's own checksums guard the contents."""
    sidecar = commit.read_sidecar(path)
    return path.is_file() and sidecar is not None and path.stat().st_size == sidecar["size"]


@dataclass(frozen=True)
class _Patient:
    case_id: str
    site: int
    setting: int
    subtype: str
    grade: int
    seed: tuple[int, ...]


def _patients(plan: NeedlePlan, bank_plan: BankPlan, split: int, slides: int) -> list[_Patient]:
    """The patient of each slide; subtypes take turns, so that the classes are balanced to one patient.

    No patient has all slides of a split, so both subtypes are in every split.
    """
    rng = np.random.default_rng([plan.seed, split])
    of_slide: list[_Patient] = []
    number = 0
    while len(of_slide) < slides:
        patient = _Patient(
            case_id=f"{SPLITS[split]}-patient-{number:04d}",
            site=int(rng.integers(bank_plan.sites)),
            setting=int(rng.integers(SETTINGS)),
            subtype="ab"[number % 2],
            grade=int(rng.integers(1, 4)),
            seed=(plan.seed, split, number),
        )
        of_slide += [patient] * min(int(rng.integers(1, 3)), slides - 1)
        number += 1
    return of_slide[:slides]


def _write_slide(
    out: Path, plan: NeedlePlan, rows: PatchBank, split: int, number: int, patient: _Patient
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """One feature file; returns the slide's row of labels.csv, and class and bank row of every patch [N]."""
    slide_id = _slide_id(split, number)
    rng = np.random.default_rng([*patient.seed, number])
    n = int(rng.integers(round(0.75 * plan.patches), round(1.25 * plan.patches) + 1))
    tumour = TISSUE_CLASSES.index(f"tumour_{patient.subtype}{patient.grade}")
    layout = needle_layout(rng, n, tumour_class=tumour, fraction=plan.fraction)
    classes = layout.patch_classes
    drawn = np.empty(n, dtype=np.int64)
    for cls in np.unique(classes):
        here = classes == cls
        cell = rows.rows(cls=int(cls), site=patient.site, setting=patient.setting, split=split)
        drawn[here] = rng.choice(cell, size=int(here.sum()))
    grid_rows, grid_columns = layout.shape
    bag = Bag(
        torch.from_numpy(rows.features[drawn]).half(),
        torch.from_numpy(layout.coords * PATCH_SIZE).double(),
        PATCH_SIZE,
        slide_id,
        mpp=MPP,
        level0_size=(grid_columns * PATCH_SIZE, grid_rows * PATCH_SIZE),
        encoder=rows.plan.encoder,
    )
    write_features(features_folder(out, rows.plan.encoder) / f"{slide_id}.h5", bag)
    label = {
        "slide_id": slide_id,
        "case_id": patient.case_id,
        "site": patient.site,
        "split": SPLITS[split],
        "n_patches": n,
        "task": "needle",
        "label": patient.subtype,
        "subtype": patient.subtype,
        "grade": patient.grade,
        "metastasis": "",
        "necrosis_share": round(float((classes == NECROSIS).mean()), 6),
        "til_pattern": "",
        "evidence_fraction": round(float((classes == tumour).mean()), 6),
    }
    return label, classes, drawn


def patch_probe(rows: PatchBank) -> np.ndarray:
    """Class of every bank row as a linear patch classifier sees it, [M] int64; fitted on the train split alone."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))
    train = rows.split == SPLITS.index("train")
    probe.fit(rows.features[train], rows.cls[train])
    return np.asarray(probe.predict(rows.features))


def difficulty(rows: PatchBank) -> dict[str, Any]:
    """How hard the bank is for a single patch: balanced accuracies of linear probes, train split → test split."""
    train, test = rows.split == SPLITS.index("train"), rows.split == SPLITS.index("test")
    pair = np.isin(rows.cls, [TISSUE_CLASSES.index("tumour_a2"), TISSUE_CLASSES.index("tumour_b2")])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.01))
    probe.fit(rows.features[train & pair], rows.cls[train & pair])
    seen = patch_probe(rows)
    return {
        "probe_a2_b2": float(balanced_accuracy_score(rows.cls[test & pair], probe.predict(rows.features[test & pair]))),
        "probe_a2_b2_patches": {"train": int((train & pair).sum()), "test": int((test & pair).sum())},
        "probe_all_classes": float(balanced_accuracy_score(rows.cls[test], seen[test])),
    }


def seen_scores(out: str | Path, rows: PatchBank, slide_ids: list[str]) -> np.ndarray:
    """The ceiling's score of each slide, [n]: patches seen as subtype b minus patches seen as a.

    It is the oracle's function (which subtype does the slide hold?) applied not to the truth, but to each patch's class
    as the patch probe sees it. The probe was fitted on the train split, so scores of train slides flatter.

    Raises InputError where the cohort in `out` was drawn from a bank of another plan, or has no slide of a given id.
    """
    record = json.loads((Path(out) / "cohort.json").read_text(encoding="utf-8"))
    if record["parameters"]["bank"] != plain(asdict(rows.plan)):
        raise InputError(f"{out}: this cohort was drawn from a bank of another plan ({record['parameters']['bank']})")
    side = np.array([1 if "_b" in name else -1 if "_a" in name else 0 for name in TISSUE_CLASSES])
    votes = side[patch_probe(rows)]
    truth = pd.read_parquet(Path(out) / "truth" / "patches.parquet")
    score = pd.Series(votes[truth["bank_row"].to_numpy()]).groupby(truth["slide_id"].astype(str).to_numpy()).sum()
    unknown = [slide_id for slide_id in slide_ids if slide_id not in score.index]
    if unknown:
        raise InputError(f"{out}: no slide {unknown[0]!r} in this cohort")
    return score.loc[slide_ids].to_numpy(float)
