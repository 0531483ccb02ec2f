"""A bank: encoded patches of every class, each belonging to one split; here rendered, of every site and stain setting.

A feature-level slide is rows drawn from here, so thousands of slides cost minutes. A bank patch never serves two
splits: what a model learns about a patch cannot help it on the patches it is measured on.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from joblib import Parallel, delayed
from safetensors.numpy import load_file, save_file

from abbe.console import progress
from abbe.errors import InputError
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.render.tissue import MPP, TISSUE_CLASSES, render, site_stain
from abbe.phantom.settings import BankPlan
from abbe.slides.patch_encoders import PatchEncoder, create_patch_encoder
from abbe.store import commit
from abbe.store.resume import plain, read_previous_record
from abbe.store.trident import job_name

SETTINGS = 3
PATCH_SIZE = 256
FORMAT, VERSION = "abbe-bank", 1
_WORLD = 1 << 20  # patches are cut at random places of a plane this wide, in pixels
_built: dict[str, PatchEncoder] = {}  # the encoder this process built last: weights are not loaded for every batch


class EncoderMark(NamedTuple):
    """What an encoder is known by: its folder-safe name, and the version that changes with its weights."""

    name: str
    version: int | str


class AnyBankPlan(Protocol):
    """A dataclass that says what a bank is made of."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def encoder(self) -> str: ...


@dataclass(frozen=True, eq=False)
class PatchBank:
    """Rows and what they are. features: [M, D] float32; cls, site, setting, split: [M] int64 (split: 0, 1, 2).

    encoder: the one that made the features.
    group: [M] int64, rows cut from one image or patient, or None where every row stands alone.
    kinds: what the numbers in `cls` mean.  patch_size: pixels.  mpp: microns a pixel, or None where nobody knows.
    sources: SHA-256 of the files it was made from, empty where it was rendered.
    """

    plan: AnyBankPlan
    encoder: EncoderMark
    features: np.ndarray
    cls: np.ndarray
    site: np.ndarray
    setting: np.ndarray
    split: np.ndarray
    group: np.ndarray | None = None
    kinds: TissueClasses = PHANTOM
    patch_size: int = PATCH_SIZE
    mpp: float | None = MPP
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def filling(self) -> str:
        """phantom, or mosaic where it holds real patches."""
        return "mosaic" if self.sources else "phantom"

    @property
    def sites(self) -> int:
        """Number of sites."""
        return int(self.site.max()) + 1

    @property
    def settings(self) -> int:
        """Number of stain settings of each site."""
        return int(self.setting.max()) + 1

    @property
    def job(self) -> str:
        """Folder of a cohort's tiling; it does not name a magnification that nobody knows."""
        return job_name(self.mpp, self.patch_size, 0) if self.mpp else f"mosaic_{self.patch_size}px_0px_overlap"

    def described(self) -> dict[str, Any]:
        """What a cohort drawn from it records of it, in plain JSON values: the plan, and hashes instead of paths."""
        said = {name: value for name, value in plain(asdict(self.plan)).items() if name not in ("patches", "index")}
        said |= _recorded(self.encoder, self.plan.encoder)
        return {**said, "sources": self.sources} if self.sources else said

    def rows(self, *, cls: int, site: int, setting: int, split: int) -> np.ndarray:
        """Row numbers of one cell in one split."""
        here = (self.cls == cls) & (self.site == site) & (self.setting == setting) & (self.split == split)
        return np.flatnonzero(here)


def encoder_mark(spec: str) -> EncoderMark:
    """What the encoder `spec` is now; built anew, so that weights replaced since are noticed."""
    _built.clear()
    made = _built[spec] = create_patch_encoder(spec)
    return EncoderMark(made.name, made.version)


def encode(spec: str, mark: EncoderMark, patches: np.ndarray) -> np.ndarray:
    """Features float32 [n, D] of patches uint8 [n, H, W, 3] by the encoder `spec`, built once a process.

    Raises InputError where it is not the one of `mark`: its weights were replaced meanwhile.
    """
    if spec not in _built or _built[spec].version != mark.version:
        found = encoder_mark(spec)
        if found != mark:
            raise InputError(f"{spec}: version {found.version} of the encoder, not {mark.version}; run it again")
    return np.asarray(_built[spec](patches), dtype=np.float32)


def _recorded(mark: EncoderMark, spec: str) -> dict[str, int | str]:
    """What records hold of an encoder beside `spec`."""
    named = {} if mark.name == spec else {"encoder_name": mark.name}
    return {"encoder_version": mark.version, **named}


def per_cell(plan: BankPlan, cls: int) -> tuple[int, int, int]:
    """Patches of a class in each split, for one site and setting."""
    return plan.tumour if TISSUE_CLASSES[cls].startswith("tumour") else plan.normal


def bank(plan: BankPlan, folder: str | Path, *, workers: int | None = None) -> PatchBank:
    """The bank of this plan in `folder`: read if it is there and whole, rendered and encoded otherwise.

    The same plan gives the same rows with any number of `workers`. Raises InputError where `folder` holds the bank of
    another plan; a file that is missing or damaged is made again.
    """
    folder = Path(folder)
    tensors, record = folder / "bank.safetensors", folder / "bank.json"
    mark = encoder_mark(plan.encoder)
    wanted = {**plain(asdict(plan)), **_recorded(mark, plan.encoder)}
    known = read_previous_record(record, format=FORMAT, version=VERSION, key="plan", wanted=wanted)
    if known is not None and commit.is_done(tensors):
        rows = load_file(tensors)
        return PatchBank(plan, mark, rows["features"], rows["cls"], rows["site"], rows["setting"], rows["split"])
    made = _render(plan, mark, workers or os.cpu_count() or 1)
    # Contiguous, because safetensors writes the buffer of a strided view as if it were whole.
    arrays = {name: np.ascontiguousarray(value) for name, value in vars(made).items() if isinstance(value, np.ndarray)}
    with commit.commit(tensors, format=FORMAT, version=VERSION) as temporary:
        save_file(arrays, temporary)
    described = {"plan": wanted, "classes": list(TISSUE_CLASSES), "patches": len(made.cls)}
    commit.write_json(record, described, format=FORMAT, version=VERSION)
    return made


def _render(plan: BankPlan, mark: EncoderMark, workers: int) -> PatchBank:
    cells = [
        (cls, site, setting)
        for cls in range(len(TISSUE_CLASSES))
        for site in range(plan.sites)
        for setting in range(SETTINGS)
    ]
    jobs = (delayed(encode_cell)(plan, mark, *cell) for cell in cells)
    features = []
    with progress("rendering the bank", len(cells)) as bar:
        # Processes, because rendering is many small array operations that hold the interpreter.
        for rows in Parallel(n_jobs=workers, return_as="generator")(jobs):
            features.append(rows)
            bar.advance(bar.task_ids[0])
    sizes = [per_cell(plan, cls) for cls, _, _ in cells]
    columns = np.repeat(np.array(cells, dtype=np.int64), [sum(size) for size in sizes], axis=0)
    split = np.concatenate([np.repeat(np.arange(3), size) for size in sizes])
    return PatchBank(plan, mark, np.concatenate(features), columns[:, 0], columns[:, 1], columns[:, 2], split)


def cell_patches(plan: BankPlan, cls: int, site: int, setting: int) -> np.ndarray:
    """The patches of one cell, uint8 [n, 256, 256, 3], splits in order."""
    rng = np.random.default_rng([plan.seed, cls, site, setting, plan.split])
    stain = site_stain(site, setting, plan.seed)
    places = rng.integers(0, _WORLD, size=(sum(per_cell(plan, cls)), 2))
    seeds = rng.integers(0, 2**31, size=len(places))
    patches = [
        render(int(x), int(y), PATCH_SIZE, PATCH_SIZE, cls, stain=stain, seed=int(seed))
        for (x, y), seed in zip(places, seeds, strict=True)
    ]
    return np.stack(patches)


def encode_cell(plan: BankPlan, mark: EncoderMark, cls: int, site: int, setting: int) -> np.ndarray:
    """Features of one cell's patches, float32 [n, D]."""
    return encode(plan.encoder, mark, cell_patches(plan, cls, site, setting))
