"""A bank: encoded patches of every class, each belonging to one split. `build_bank` renders and encodes them.

A feature-level slide is rows drawn from a bank, so thousands of slides take minutes. No patch is in two splits: what a
model learns about a patch in training cannot help it in testing. Banks of real patches: `abbe.phantom.mosaic`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from safetensors.numpy import load_file, save_file

from abbe.console import progress
from abbe.errors import InputError
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.layout import Layout, pixel_classes
from abbe.phantom.render.capture import MCU, captured
from abbe.phantom.render.tissue import MPP, TISSUE_CLASSES, site_stain
from abbe.phantom.settings import PHANTOM_VERSION, BankPlan, MosaicBankPlan, with_version
from abbe.phantom.surroundings import surroundings
from abbe.slides.patch_encoders import PatchEncoder, create_patch_encoder
from abbe.store import commit
from abbe.store.resume import plain, read_previous_record
from abbe.store.trident import job_name

SETTINGS = 3
"""stain settings of each site"""
PATCH_SIZE = 256
FORMAT, VERSION = "abbe-bank", 1
_WORLD = 1 << 20  # pixels; patches are cut at random places of a plane this wide
_loaded: dict[str, PatchEncoder] = {}  # the encoder this process loaded last, so that batches share its weights

Arrays = dict[str, np.ndarray]


class EncoderVersion(NamedTuple):
    """name: of a patch encoder, safe as a folder name.  version: changes with its weights."""

    name: str
    version: int | str


@dataclass(frozen=True, eq=False)
class PatchBank:
    """features: [M, D] float32.  cls, site, setting, split: of each row, [M] int64; split is an index in SPLITS.

    group: [M] int64, the same for rows cut from one image or patient; None if every row is a group of its own.
    purity: share of each patch's pixels that are of its class, [M] float32; None if it is not known, as in a mosaic.
    classes: what the numbers in `cls` mean.  patch_size: pixels.  mpp: microns per pixel, None if unknown.
    sources: SHA-256 of the files the patches come from; empty if they were rendered.
    """

    plan: BankPlan | MosaicBankPlan
    encoder: EncoderVersion
    features: np.ndarray
    cls: np.ndarray
    site: np.ndarray
    setting: np.ndarray
    split: np.ndarray
    group: np.ndarray | None = None
    purity: np.ndarray | None = None
    classes: TissueClasses = PHANTOM
    patch_size: int = PATCH_SIZE
    mpp: float | None = MPP
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def filling(self) -> str:
        """`mosaic` if the patches are real, otherwise `phantom`."""
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
        """Folder name of a cohort's features; names the magnification only if it is known."""
        return job_name(self.mpp, self.patch_size, 0) if self.mpp else f"mosaic_{self.patch_size}px_0px_overlap"

    def record(self) -> dict[str, Any]:
        """What the record of a cohort says about its bank."""
        return plan_record(self.plan, self.encoder, self.sources)

    def rows(self, *, cls: int, site: int, setting: int, split: int) -> np.ndarray:
        """Row numbers of one cell in one split."""
        return np.flatnonzero(
            (self.cls == cls) & (self.site == site) & (self.setting == setting) & (self.split == split)
        )


def plan_record(
    plan: BankPlan | MosaicBankPlan, encoder: EncoderVersion, sources: dict[str, str] | None = None
) -> dict[str, Any]:
    """A plan in plain JSON values, with the hashes of its sources instead of their paths."""
    record = {name: value for name, value in plain(asdict(plan)).items() if name not in ("patches", "index")}
    record["encoder_version"] = encoder.version
    if isinstance(plan, BankPlan):
        record["phantom_version"] = PHANTOM_VERSION
    if encoder.name != plan.encoder:
        record["encoder_name"] = encoder.name
    return {**record, "sources": sources} if sources else record


def encoder_version(spec: str) -> EncoderVersion:
    """Name and version of the encoder `spec`. It is loaded again, so that replaced weights are noticed."""
    _loaded.clear()
    encoder = _loaded[spec] = create_patch_encoder(spec)
    return EncoderVersion(encoder.name, encoder.version)


def encode(spec: str, expected: EncoderVersion, patches: np.ndarray) -> np.ndarray:
    """Features float32 [n, D] of patches uint8 [n, H, W, 3]; each process loads the encoder `spec` once.

    Raises InputError if the weights have been replaced, so that the encoder is no longer the `expected` one.
    """
    if spec not in _loaded or _loaded[spec].version != expected.version:
        found = encoder_version(spec)
        if found != expected:
            raise InputError(
                f"{spec}: the encoder's version changed from {expected.version} to {found.version}; run it again"
            )
    return np.asarray(_loaded[spec](patches), dtype=np.float32)


def in_parallel(description: str, jobs: Sequence[Any], workers: int | None) -> list[Any]:
    """Results of `joblib.delayed` calls, in order, with a progress bar. workers: processes, None for one per core."""
    results = []
    with progress(description, len(jobs)) as bar:
        # Processes, not threads: rendering is many small array operations that hold the interpreter lock.
        for result in Parallel(n_jobs=workers or os.cpu_count() or 1, return_as="generator")(jobs):
            results.append(result)
            bar.advance(bar.task_ids[0])
    return results


def read_or_make(
    folder: Path,
    make: Callable[[], tuple[Arrays, dict[str, Any]]],
    *,
    format: str,
    version: int,
    wanted: dict[str, Any],
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the record of the bank in `folder`; calls `make` for both if a file is missing or damaged.

    Raises InputError if `folder` holds a bank whose plan is not `wanted`.
    """
    tensors, path = folder / "bank.safetensors", folder / "bank.json"
    record = read_previous_record(path, format=format, version=version, key="plan", wanted=wanted, earlier=with_version)
    if record is not None and commit.is_done(tensors):
        return load_file(tensors), record
    arrays, about = make()
    with commit.commit(tensors, format=format, version=version) as temporary:
        # safetensors writes the buffer of a strided view as if it were whole.
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    record = {"plan": wanted, **about}
    commit.write_json(path, record, format=format, version=version)
    return arrays, record


def build_bank(plan: BankPlan, folder: str | Path, *, workers: int | None = None) -> PatchBank:
    """The bank of this plan in `folder`: read if it is there, rendered and encoded otherwise.

    The number of `workers` does not change the rows. Raises InputError if `folder` holds the bank of another plan.
    """
    encoder = encoder_version(plan.encoder)
    arrays, _ = read_or_make(
        Path(folder),
        lambda: _render_and_encode(plan, encoder, workers),
        format=FORMAT,
        version=VERSION,
        wanted=plan_record(plan, encoder),
    )
    features, cls, site, setting, split, purity = (
        arrays[name] for name in ("features", "cls", "site", "setting", "split", "purity")
    )
    return PatchBank(plan, encoder, features, cls, site, setting, split, purity=purity)


def _render_and_encode(plan: BankPlan, encoder: EncoderVersion, workers: int | None) -> tuple[Arrays, dict[str, Any]]:
    cells = list(itertools.product(range(len(TISSUE_CLASSES)), range(plan.sites), range(SETTINGS)))
    jobs = [delayed(encode_cell)(plan, encoder, *cell) for cell in cells]
    features, purity = zip(*in_parallel("rendering the bank", jobs, workers), strict=True)
    sizes = [per_cell(plan, cls) for cls, _, _ in cells]
    cls, site, setting = np.repeat(np.array(cells, dtype=np.int64), [sum(size) for size in sizes], axis=0).T
    split = np.concatenate([np.repeat(np.arange(3), size) for size in sizes])
    columns = {"cls": cls, "site": site, "setting": setting, "split": split, "purity": np.concatenate(purity)}
    arrays = {"features": np.concatenate(features), **columns}
    return arrays, {"classes": list(TISSUE_CLASSES), "patches": len(split)}


def per_cell(plan: BankPlan, cls: int) -> tuple[int, int, int]:
    """Patches of a class for train, val and test, in each cell."""
    return plan.tumour if cls in PHANTOM.tumours else plan.normal


def cell_patches(plan: BankPlan, cls: int, site: int, setting: int) -> tuple[np.ndarray, np.ndarray]:
    """The patches of one cell, uint8 [n, 256, 256, 3], by split, and their purity, float32 [n]."""
    cell = [plan.seed, cls, site, setting, plan.split]
    rng = np.random.default_rng(cell)
    stain = site_stain(site, setting, plan.seed)
    places = rng.integers(0, _WORLD, size=(sum(per_cell(plan, cls)), 2))
    seeds = rng.integers(0, 2**31, size=len(places))
    phases = rng.integers(0, MCU, size=places.shape)
    patches, shares = [], []
    for number, ((x, y), (dx, dy), seed) in enumerate(
        zip(places.tolist(), phases.tolist(), seeds.tolist(), strict=True)
    ):
        around, purity = surroundings(np.random.default_rng([*cell, number]), cls, PATCH_SIZE, seed)
        patches.append(captured(x, y, PATCH_SIZE, _painter(around, cls, seed), phase=(dx, dy), stain=stain, seed=seed))
        shares.append(purity)
    return np.stack(patches), np.array(shares, np.float32)


def _painter(around: Layout, cls: int, seed: int) -> int | Callable[[int, int, int, int], np.ndarray]:
    """What `captured` paints: the middle patch of the raster `around`."""
    if (around.classes == cls).all():
        return cls
    size = PATCH_SIZE
    return lambda x, y, width, height: pixel_classes(around, size + x, size + y, width, height, size, seed)


def encode_cell(
    plan: BankPlan, encoder: EncoderVersion, cls: int, site: int, setting: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features of one cell's patches, float32 [n, D], and their purity, float32 [n]."""
    patches, purity = cell_patches(plan, cls, site, setting)
    return encode(plan.encoder, encoder, patches), purity
