"""`abbe encode`: slides in, bags of patch features out, one outcome a slide."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import tyro
from rich.markup import escape
from rich.progress import Progress

from abbe.console import progress, result
from abbe.errors import BagError, ConfigError, InputError, SlideError, StoreError
from abbe.slides.find import find_slides, printable
from abbe.slides.patch_encoders import PatchEncoder, create_patch_encoder
from abbe.slides.slide import TIME_LIMIT, Frame, read_slide
from abbe.slides.tiling import MIN_TISSUE, MPP_RANGE
from abbe.slides.tissue import TISSUE_VERSION
from abbe.store import commit, trident
from abbe.store.outcomes import Outcome, Result, exit_code, write_outcomes
from abbe.types import Bag

_BATCH = 32  # patches the reader sends at a time, fewer ...
_BATCH_BYTES = 1 << 24  # ... where they are large
_SHOWN_FAILURES = 20

_Ending = tuple[Result, str, str, int]  # outcome, stage, reason, patches


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
        lines = [f"{o.path}: {o.outcome} at {o.stage}: {o.reason}" for o in outcomes if o.outcome == "failed"]
        if len(lines) > _SHOWN_FAILURES:
            lines = [*lines[:_SHOWN_FAILURES], f"and {len(lines) - _SHOWN_FAILURES} more"]
        counted = Counter(outcome.outcome for outcome in outcomes)
        summary = ", ".join(f"{number} {name}" for name, number in sorted(counted.items()))
        patches = sum(outcome.patches for outcome in outcomes)
        text = "\n".join([*lines, f"{summary}; {patches} patches; see {printable(self.out / 'outcomes.csv')}"])
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
    halt: threading.Event  # set when the run is interrupted

    @property
    def folder(self) -> Path:
        return self.out / trident.job_name(self.mpp, self.patch_size, self.overlap)

    def patches_path(self, slide_id: str) -> Path:
        return trident.patches_path(self.folder, slide_id)

    def features_path(self, slide_id: str) -> Path:
        return trident.features_path(self.folder, self.encoder.name, slide_id)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a slide's coordinates, and with them its features, besides the slide and the encoder."""
        return {
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

    One slide's failure is a row, never the end of the run; an interrupted run too writes a row for every slide. Raises
    InputError before any work for a path that does not exist, folders without slides, or a setting that cannot be.
    """
    options = {
        "encoder": encoder,
        "mpp": mpp,
        "patch_size": patch_size,
        "overlap": overlap,
        "override_mpp": override_mpp,
        "workers": workers,
        "time_limit": time_limit,
        "overwrite": overwrite,
    }
    _check_settings(mpp, patch_size, overlap, override_mpp, workers, time_limit)
    made = create_patch_encoder(encoder)
    if made.patch_size not in (None, patch_size):
        raise ConfigError(f"--patch-size is {patch_size}; the encoder {encoder} is made for {made.patch_size}")
    found = find_slides(slides)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: no folder can be made there ({error.strerror})") from error
    config = {"slides": [printable(slide) for slide in slides], "out": printable(out), **options}
    commit.write_json(out / "config.json", config, format="abbe-config")
    halt = threading.Event()
    job = _Job(out, made, mpp, patch_size, overlap, override_mpp, time_limit, overwrite, halt)
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
    with progress("encoding slides", len(found)) as bar:
        overall = bar.task_ids[0]
        # Threads: each waits for its own child process, and the encoder's arrays leave the interpreter free.
        futures = {slide_id: pool.submit(_encode_one, job, slide_id, path, bar) for slide_id, path in found.items()}
        try:
            for future in futures.values():
                future.add_done_callback(lambda _: bar.advance(overall))
            for future in futures.values():
                future.result()
        except BaseException:
            halt.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            outcomes = [
                _interrupted(slide_id, found[slide_id]) if future.cancelled() else future.result()
                for slide_id, future in futures.items()
            ]
            write_outcomes(out / "outcomes.csv", outcomes)
    return outcomes


def _encode_one(job: _Job, slide_id: str, path: Path, bar: Progress) -> Outcome:
    start = time.monotonic()

    def outcome(kind: Result, stage: str = "", reason: str = "", patches: int = 0) -> Outcome:
        return Outcome(slide_id, printable(path), kind, stage, printable(reason), patches, time.monotonic() - start)

    if job.halt.is_set():
        return _interrupted(slide_id, path)
    try:
        record = {"settings": job.settings, "slide": _fingerprint(path), "encoder_version": job.encoder.version}
        return outcome(*(_finished(job, slide_id, record) or _encode(job, slide_id, path, record, bar)))
    except SlideError as error:
        return outcome("failed", error.stage, error.reason)
    except Exception as error:  # noqa: BLE001  a defect of ours in one slide is recorded as such; the batch goes on
        return outcome("failed", "internal", f"{type(error).__name__}: {error}")


def _interrupted(slide_id: str, path: Path) -> Outcome:
    reason = "the run was stopped before this slide; the same command goes on from here"
    return Outcome(slide_id, printable(path), "failed", "interrupted", reason)


def _finished(job: _Job, slide_id: str, record: dict[str, Any]) -> _Ending | None:
    """How an earlier run of the same settings on the same slide ended, or None where there is work to do.

    Raises SlideError (stage resume) rather than replace what was made otherwise, or by another program.
    """
    for path in (job.features_path(slide_id), job.patches_path(slide_id)):
        try:
            state = commit.state(path)
            sidecar = commit.read_sidecar(path)
        except StoreError as error:
            raise SlideError("resume", str(error)) from error
        if state == "unsigned" and not job.overwrite and not _ours(path):
            raise SlideError("resume", f"{path} was not written by abbe and would be replaced; use another --out")
        if state != "done" or sidecar is None:
            continue
        old = sidecar["made_with"]
        differs = _difference(old, record, of_features=path == job.features_path(slide_id))
        if differs and not job.overwrite:
            raise SlideError("resume", f"{path} was made with {differs}; use --overwrite, or another --out")
        # A patches file with patches is no end: features are what is asked for.
        if not differs and (old["empty"] or path == job.features_path(slide_id)):
            return "empty" if old["empty"] else "done", "tissue" if old["empty"] else "", old["reason"], old["patches"]
    return None


def _ours(path: Path) -> bool:
    """Whether a file without a sidecar is one of ours whose run was killed just before the sidecar was written."""
    try:
        with h5py.File(path, "r") as file:
            return "coords" in file and "level0_mpp" in file["coords"].attrs
    except OSError:
        return False


def _difference(old: dict[str, Any], new: dict[str, Any], *, of_features: bool) -> str:
    """What differs between two records, in words; "" where nothing does. Coordinates do not depend on the encoder."""
    new = json.loads(json.dumps(new))
    if "slide" not in old:
        return "something other than `abbe encode`"
    if old["slide"] != new["slide"]:
        return "another version of the slide (its size or bytes have changed)"
    before, now = old.get("settings", {}), new["settings"]
    changed = [f"{key}={before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
    if of_features and old.get("encoder_version") != new["encoder_version"]:
        changed.append(f"version {old.get('encoder_version')} of the encoder, now {new['encoder_version']}")
    return "; ".join(changed)


def _encode(job: _Job, slide_id: str, path: Path, record: dict[str, Any], bar: Progress) -> _Ending:
    options: dict[str, Any] = {
        "target_mpp": job.mpp,
        "patch_size": job.patch_size,
        "overlap": job.overlap,
        "override_mpp": job.override_mpp,
        "batch": max(1, min(_BATCH, _BATCH_BYTES // (3 * job.patch_size**2))),
    }
    rows = [np.zeros((0, job.encoder.width), np.float32)]
    with read_slide("tiles", path, time_limit=job.time_limit, halt=job.halt, **options) as frames:
        plan = next(frames)
        said = "; ".join(plan.header["warnings"])
        if plan.kind == "empty":
            return _write_empty(job, slide_id, plan, record)
        coords = np.frombuffer(plan.payload, "<i8").reshape(-1, 2)
        task = bar.add_task(escape(slide_id), total=len(coords))
        try:
            for frame in frames:
                shape = (frame.header["count"], job.patch_size, job.patch_size, 3)
                rows.append(_features(job.encoder, np.frombuffer(frame.payload, np.uint8).reshape(shape)))
                bar.advance(task, len(rows[-1]))
        finally:
            bar.remove_task(task)
    try:
        bag = Bag(
            torch.from_numpy(np.concatenate(rows)),
            torch.from_numpy(coords.astype(np.float64)),
            plan.header["patch_size_level0"],
            slide_id,
            stride_level0=plan.header["stride_level0"],
            mpp=plan.header["mpp"],
            level0_size=tuple(plan.header["size_level0"]),
            encoder=job.encoder.name,
            source=str(path),
        )
    except BagError as error:  # a feature that is not finite, patches that did not all come
        raise SlideError("encode", str(error)) from error
    made_with = {**record, "empty": False, "reason": said, "patches": len(coords)}
    geometry = _geometry(job, slide_id, plan)
    try:
        trident.write_patches(job.patches_path(slide_id), coords, geometry, made_with)
        # Features last: a slide with features is a slide that is whole.
        trident.write_features(job.features_path(slide_id), bag, geometry, made_with)
    except (OSError, StoreError) as error:
        raise SlideError("write", str(error)) from error
    return "done", "", said, len(coords)


def _features(encoder: PatchEncoder, patches: np.ndarray) -> np.ndarray:
    """float32 [B, D] of patches uint8 [B, H, W, 3]. SlideError (stage encode) for an encoder that refuses them."""
    try:
        features = encoder(patches)
    except InputError as error:
        raise SlideError("encode", str(error)) from error
    if features.shape != (len(patches), encoder.width) or features.dtype != np.float32:
        expected = f"float32 {(len(patches), encoder.width)}"
        raise SlideError("encode", f"{encoder.name} gave {features.dtype} {features.shape}, expected {expected}")
    return features


def _write_empty(job: _Job, slide_id: str, plan: Frame, record: dict[str, Any]) -> _Ending:
    """A slide without patches has a patches file without rows, so that the next run knows, and no feature file."""
    reason = "; ".join([plan.header["reason"], *plan.header["warnings"]])
    made_with = {**record, "empty": True, "reason": reason, "patches": 0}
    features = job.features_path(slide_id)
    try:
        # Whatever stands there was damaged, or is to be overwritten.
        commit.sidecar_path(features).unlink(missing_ok=True)
        features.unlink(missing_ok=True)
        trident.write_patches(job.patches_path(slide_id), np.zeros((0, 2)), _geometry(job, slide_id, plan), made_with)
    except (OSError, StoreError) as error:
        raise SlideError("write", str(error)) from error
    return "empty", "tissue", reason, 0


def _geometry(job: _Job, slide_id: str, plan: Frame) -> trident.Geometry:
    width, height = plan.header["size_level0"]
    mpp = plan.header["mpp"]
    size = plan.header.get("patch_size_level0", job.patch_size * job.mpp / mpp)
    return trident.Geometry(
        patch_size=job.patch_size,
        patch_size_level0=size,
        level0_magnification=trident.magnification(mpp),
        # Of the patches as they were read: the ratio of the two is that of the sizes, which other readers rely on.
        target_magnification=trident.magnification(mpp) * job.patch_size / size,
        overlap=job.overlap,
        level0_width=width,
        level0_height=height,
        level0_mpp=mpp,
        name=slide_id,
        # Relative, so that a file's bytes do not depend on where --out lies.
        savetodir=job.folder.name,
    )


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size, and SHA-256 of the first and last MiB: gigabytes are not read to see that a slide is the same."""
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


def _check_settings(
    mpp: float, patch_size: int, overlap: int, override_mpp: float | None, workers: int | None, time_limit: float
) -> None:
    low, high = MPP_RANGE
    for option, value in (("--mpp", mpp), ("--override-mpp", override_mpp)):
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{option} is {value:g}; microns a pixel lie between {low:g} and {high:g}")
    if patch_size < 32:
        raise ConfigError(f"--patch-size is {patch_size}; a patch has at least 32 pixels a side")
    if not 0 <= overlap < patch_size:
        raise ConfigError(f"--overlap is {overlap}; it must be at least 0 and below the patch size {patch_size}")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}; at least 1 is needed")
    if not time_limit > 0:
        raise ConfigError(f"--time-limit is {time_limit:g}; it must be above 0 seconds")
