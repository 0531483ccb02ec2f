"""`abbe encode`: slides in, bags of patch features out, one outcome a slide."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from abbe.console import progress, result
from abbe.errors import AbbeError, ConfigError, InputError, SlideError
from abbe.slides.patch_encoders import PatchEncoder, create_patch_encoder
from abbe.slides.slide import TIME_LIMIT, Frame, read_slide
from abbe.slides.tiling import MIN_TISSUE, MPP_RANGE
from abbe.slides.tissue import TISSUE_VERSION
from abbe.store import commit, trident
from abbe.store.outcomes import Outcome, exit_code, write_outcomes
from abbe.types import Bag

SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .mrxs .vms .vmu .scn .bif .svslide .dcm .czi .btf".split()  # what OpenSlide may read
)
_BATCH = 32  # patches the reader sends at a time
_SHOWN_FAILURES = 20


@dataclass(frozen=True)
class Encode:
    """Encode slides: find the tissue, cut it into patches, turn each patch into a feature row.

    Example:
      abbe encode slides/ --out out
      abbe encode slide.svs --out out --mpp 0.5 --override-mpp 0.25

    Features lie in OUT/<mag>x_<patch>px_<overlap>px_overlap/features_<encoder>/<slide>.h5 (TRIDENT layout), and
    OUT/outcomes.csv has a row for every slide. The same command again does only what is missing.
    """

    slides: tyro.conf.Positional[tuple[Path, ...]]
    """slide files, and folders that are searched for slides"""
    out: Path
    """folder for features and outcomes.csv"""
    encoder: str = "texture"
    """patch encoder"""
    mpp: float = 0.5
    """microns a pixel of the patches (0.5 is 20x)"""
    patch_size: int = 256
    """side of a patch in pixels at that mpp"""
    overlap: int = 0
    """pixels that neighbouring patches share"""
    override_mpp: float | None = None
    """microns a pixel at level 0, for slides that do not say it or say it wrongly"""
    workers: int | None = None
    """slides in flight (default: one a core, at most 8)"""
    time_limit: float = TIME_LIMIT
    """seconds a slide may take before it is stopped and counted as failed"""
    overwrite: bool = False
    """encode again what was made from another version of a slide, or with other settings"""
    json: bool = False
    """print the outcomes as JSON"""

    def run(self) -> int:
        settings = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        options = {key: value for key, value in settings.items() if key not in ("slides", "out", "json")}
        outcomes = encode_slides(self.slides, self.out, **options)
        counted = Counter(outcome.outcome for outcome in outcomes)
        lines = [f"{o.path}: {o.outcome} at {o.stage}: {o.reason}" for o in outcomes if o.outcome == "failed"]
        if len(lines) > _SHOWN_FAILURES:
            lines = [*lines[:_SHOWN_FAILURES], f"and {len(lines) - _SHOWN_FAILURES} more"]
        summary = ", ".join(f"{number} {name}" for name, number in sorted(counted.items())) or "no slides"
        text = "\n".join(
            [*lines, f"{summary}; {sum(o.patches for o in outcomes)} patches; see {self.out / 'outcomes.csv'}"]
        )
        result(text, [dataclasses.asdict(outcome) for outcome in outcomes], json_output=self.json)
        return exit_code(outcomes)


@dataclass(frozen=True)
class _Job:
    """What every slide of a run has in common."""

    out: Path
    encoder: PatchEncoder
    mpp: float
    patch_size: int
    overlap: int
    override_mpp: float | None
    time_limit: float
    overwrite: bool

    @property
    def folder(self) -> Path:
        return self.out / trident.job_name(self.mpp, self.patch_size, self.overlap)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a feature file's content, besides the slide."""
        return {
            "encoder": self.encoder.name,
            "mpp": self.mpp,
            "patch_size": self.patch_size,
            "overlap": self.overlap,
            "override_mpp": self.override_mpp,
            "tissue_version": TISSUE_VERSION,
            "min_tissue": MIN_TISSUE,
        }


def encode_slides(
    slides: Sequence[Path],
    out: str | Path,
    *,
    encoder: str = "texture",
    mpp: float = 0.5,
    patch_size: int = 256,
    overlap: int = 0,
    override_mpp: float | None = None,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT,
    overwrite: bool = False,
) -> list[Outcome]:
    """Encode slides and folders of slides; outcomes in the order of the inputs, also committed to out/outcomes.csv.

    One slide's failure is a row, never the end of the run. Raises InputError before any work for a path that does not
    exist or a setting that cannot be.
    """
    _check_settings(mpp, patch_size, overlap, workers, time_limit)
    found = find_slides(slides)
    out = Path(out)
    job = _Job(out, create_patch_encoder(encoder), mpp, patch_size, overlap, override_mpp, time_limit, overwrite)
    commit.write_json(out / "config.json", {"slides": [str(s) for s in slides], **job.settings}, format="abbe-config")
    outcomes: dict[str, Outcome] = {}
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
    try:
        with progress("encoding slides", len(found)) as bar:
            # Threads: each waits for its own child process, and the encoder's arrays leave the interpreter free.
            futures: dict[Future[Outcome], str] = {
                pool.submit(_encode_one, job, slide_id, path): slide_id for slide_id, path in found.items()
            }
            for future, slide_id in futures.items():
                outcomes[slide_id] = future.result()
                bar.advance(bar.task_ids[0])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        write_outcomes(out / "outcomes.csv", [outcomes[slide_id] for slide_id in found if slide_id in outcomes])
    return [outcomes[slide_id] for slide_id in found]


def find_slides(paths: Sequence[Path]) -> dict[str, Path]:
    """slide_id → path of every slide named or found in a folder, in order. A slide's id is its stem.

    Where two share a stem, both are named by their path below the folder given, with `__` for `/`, suffix included.
    Raises InputError for a path that does not exist.
    """
    found: dict[Path, str] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            for file in sorted(_slides_below(path)):
                found.setdefault(file, str(file.relative_to(path)))
        elif path.is_file():
            found.setdefault(path, path.name)
        else:
            raise InputError(f"{path}: no such slide or folder")
    stems = Counter(path.stem for path in found)
    named = {(path.stem if stems[path.stem] == 1 else name.replace("/", "__")): path for path, name in found.items()}
    if len(named) < len(found):
        raise InputError("two slides come to the same id; name them by one common folder instead of one by one")
    return named


def _slides_below(folder: Path) -> Iterator[Path]:
    # os.walk does not follow links to folders, so a loop of links is no trap.
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                yield path


def _encode_one(job: _Job, slide_id: str, path: Path) -> Outcome:
    start = time.monotonic()

    def outcome(kind: str, stage: str = "", reason: str = "", patches: int = 0) -> Outcome:
        return Outcome(slide_id, str(path), kind, stage, reason, patches, time.monotonic() - start)  # type: ignore[arg-type]

    try:
        source = _fingerprint(path)
        made_with = {"settings": job.settings, "slide": source}
        before = _finished(job, slide_id, made_with)
        if before is not None:
            return outcome(*before)
        return outcome(*_encode(job, slide_id, path, made_with))
    except SlideError as error:
        return outcome("failed", error.stage, error.reason)
    except AbbeError as error:
        return outcome("failed", "write", str(error))
    except OSError as error:
        return outcome("failed", "write", f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001  a defect of ours in one slide is recorded as such; the batch goes on
        return outcome("failed", "internal", f"{type(error).__name__}: {error}")


def _finished(job: _Job, slide_id: str, made_with: dict[str, Any]) -> tuple[str, str, str, int] | None:
    """The outcome of an earlier run of the same settings on the same slide, or None where there is work to do."""
    for path in (
        trident.features_path(job.folder, job.encoder.name, slide_id),
        trident.patches_path(job.folder, slide_id),
    ):
        if not commit.is_done(path):
            continue
        sidecar = commit.read_sidecar(path)
        assert sidecar is not None
        old = sidecar["made_with"]
        is_features = path.parent.name != "patches"
        if is_features or old.get("empty"):
            differs = _difference(old, made_with)
            if differs and not job.overwrite:
                raise SlideError("resume", f"{path} was made with {differs}; use --overwrite, or another --out")
            if not differs:
                return ("done" if is_features else "empty", "", old["reason"], old["patches"])
    return None


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two records, in words; "" where nothing does."""
    new = json.loads(json.dumps(new))
    if old.get("slide") != new["slide"]:
        return "another version of the slide (its size or bytes have changed)"
    before, now = old.get("settings", {}), new["settings"]
    changed = [f"{key}={before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
    return "; ".join(changed)


def _encode(job: _Job, slide_id: str, path: Path, made_with: dict[str, Any]) -> tuple[str, str, str, int]:
    options = {
        "target_mpp": job.mpp,
        "patch_size": job.patch_size,
        "overlap": job.overlap,
        "override_mpp": job.override_mpp,
        "batch": _BATCH,
    }
    rows: list[np.ndarray] = []
    with read_slide("tiles", path, time_limit=job.time_limit, **options) as frames:
        first = next(frames)
        said = "; ".join(first.header["warnings"])
        if first.kind == "empty":
            reason = "; ".join(filter(None, (first.header["reason"], said)))
            record = {**made_with, "empty": True, "reason": reason, "patches": 0}
            patches = trident.patches_path(job.folder, slide_id)
            trident.write_patches(patches, np.zeros((0, 2)), _geometry(job, slide_id, first), record)
            return "empty", "tissue", reason, 0
        coords = np.frombuffer(first.payload, "<i8").reshape(-1, 2)
        for frame in frames:
            shape = (frame.header["count"], job.patch_size, job.patch_size, 3)
            rows.append(job.encoder(np.frombuffer(frame.payload, np.uint8).reshape(shape)))
    record = {**made_with, "empty": False, "reason": said, "patches": len(coords)}
    geometry = _geometry(job, slide_id, first)
    bag = Bag(
        torch.from_numpy(np.concatenate(rows)),
        torch.from_numpy(coords.astype(np.float64)),
        first.header["patch_size_level0"],
        slide_id,
        stride_level0=first.header["stride_level0"],
        mpp=first.header["mpp"],
        level0_size=tuple(first.header["size_level0"]),
        encoder=job.encoder.name,
        source=str(path),
    )
    trident.write_patches(trident.patches_path(job.folder, slide_id), coords, geometry, record)
    # Features last: a slide with features is a slide that is whole.
    trident.write_features(trident.features_path(job.folder, job.encoder.name, slide_id), bag, geometry, record)
    return "done", "", said, len(coords)


def _geometry(job: _Job, slide_id: str, plan: Frame) -> trident.Geometry:
    width, height = plan.header["size_level0"]
    mpp = plan.header["mpp"]
    return trident.Geometry(
        patch_size=job.patch_size,
        patch_size_level0=plan.header.get("patch_size_level0", job.patch_size * job.mpp / mpp),
        level0_magnification=trident.magnification(mpp),
        target_magnification=trident.magnification(job.mpp),
        overlap=job.overlap,
        level0_width=width,
        level0_height=height,
        level0_mpp=mpp,
        name=slide_id,
        # Relative, so that a file's bytes do not depend on where --out lies.
        savetodir=job.folder.name,
    )


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size, and SHA-256 of the first and last MiB: a slide of gigabytes is not read whole to see that it is the same."""
    try:
        size = path.stat().st_size
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read(1 << 20))
    except OSError as error:
        raise SlideError("open", f"{type(error).__name__}: {error.strerror}") from error
    return {"size": size, "sha256_ends": digest.hexdigest()}


def _check_settings(mpp: float, patch_size: int, overlap: int, workers: int | None, time_limit: float) -> None:
    low, high = MPP_RANGE
    if not low <= mpp <= high:
        raise ConfigError(f"--mpp is {mpp:g}; microns a pixel lie between {low:g} and {high:g}")
    if patch_size < 32:
        raise ConfigError(f"--patch-size is {patch_size}; a patch has at least 32 pixels a side")
    if not 0 <= overlap < patch_size:
        raise ConfigError(f"--overlap is {overlap}; it must be at least 0 and below the patch size {patch_size}")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}; at least 1 is needed")
    if not time_limit > 0:
        raise ConfigError(f"--time-limit is {time_limit:g}; it must be above 0 seconds")
