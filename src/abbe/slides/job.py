"""One slide of `abbe encode`: read its patches, encode them while the next are read, write the bag."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.progress import Progress

from abbe.errors import BagError, InputError, SlideError, StoreError
from abbe.slides.find import FoundSlide
from abbe.slides.patch_encoders import PatchEncoder
from abbe.slides.resume import Ending, fingerprint, finished
from abbe.slides.settings import EncodeSettings
from abbe.slides.slide import Frame, read_slide
from abbe.slides.tiling import MIN_TISSUE
from abbe.slides.tissue import TISSUE_VERSION
from abbe.store import commit, trident
from abbe.store.kind import Kind
from abbe.store.outcomes import Outcome, Result
from abbe.types import Bag

_BATCH_BYTES = 1 << 26  # limit of a batch: fewer patches than the batch size if they are large


@dataclass(frozen=True)
class Job:
    """What all slides of a run share."""

    out: Path
    encoder: PatchEncoder
    settings: EncodeSettings
    halt: threading.Event  # set when the run is interrupted
    device_lock: AbstractContextManager[Any]

    @property
    def folder(self) -> Path:
        return self.out / trident.job_name(self.settings.mpp, self.settings.patch_size, self.settings.overlap)

    def patches_path(self, slide_id: str) -> Path:
        return trident.patches_path(self.folder, slide_id)

    def features_path(self, slide_id: str) -> Path:
        return trident.features_path(self.folder, self.encoder.name, slide_id)

    @property
    def kind(self) -> Kind:
        """What the encoder is given, with the mpp that was asked for."""
        size, overlap = self.settings.patch_size, self.settings.overlap
        return Kind(self.encoder.name, str(self.encoder.version), self.settings.mpp, size, overlap)

    def record(self, slide: FoundSlide) -> dict[str, Any]:
        """What determines the files of a slide, stored in their sidecars. Batch size and device are not part of it."""
        settings = {key: getattr(self.settings, key) for key in ("mpp", "patch_size", "overlap", "override_mpp")}
        return {
            "settings": {**settings, "tissue_version": TISSUE_VERSION, "min_tissue": MIN_TISSUE},
            "slide": fingerprint(slide.files),
            "encoder_version": self.encoder.version,
            "precision": str(getattr(self.encoder, "dtype", torch.float32)).removeprefix("torch."),
        }


def encode_one(job: Job, slide: FoundSlide, bar: Progress) -> Outcome:
    """Encode one slide; any failure becomes its outcome."""
    start = time.monotonic()

    def outcome(kind: Result, stage: str = "", reason: str = "", patches: int = 0) -> Outcome:
        path, reason, seconds = commit.printable(slide.path), commit.printable(reason), time.monotonic() - start
        return Outcome(slide.slide_id, path, kind, stage, reason, patches, seconds)

    if slide.problem:  # an entry of a folder is skipped; one that the user named was wanted
        return outcome("failed" if slide.named else "skipped", "find", slide.problem)
    if job.halt.is_set():
        return interrupted(slide)
    features, patches = job.features_path(slide.slide_id), job.patches_path(slide.slide_id)
    try:
        record = job.record(slide)
        ending = finished(features, patches, record, overwrite=job.settings.overwrite)
        return outcome(*(ending or _encode(job, slide, record, bar)))
    except SlideError as error:
        return outcome("failed", error.stage, error.reason)
    except Exception as error:  # noqa: BLE001  our own defect in one slide is recorded as such; the run continues
        return outcome("failed", "internal", f"{type(error).__name__}: {error}")


def interrupted(slide: FoundSlide) -> Outcome:
    """The outcome of a slide that was not reached before the run was stopped."""
    reason = "the run was stopped before this slide; run the same command again to continue"
    return Outcome(slide.slide_id, commit.printable(slide.path), "failed", "interrupted", reason)


def _encode(job: Job, slide: FoundSlide, record: dict[str, Any], bar: Progress) -> Ending:
    slide_id, settings = slide.slide_id, job.settings
    options: dict[str, Any] = {
        "target_mpp": settings.mpp,
        "patch_size": settings.patch_size,
        "overlap": settings.overlap,
        "override_mpp": settings.override_mpp,
        "batch": max(1, min(settings.batch_size, _BATCH_BYTES // (3 * settings.patch_size**2))),
    }
    rows = [np.zeros((0, job.encoder.width), np.float32)]
    with read_slide("tiles", slide.path, time_limit=settings.time_limit, halt=job.halt, **options) as frames:
        plan = next(frames)
        warnings = "; ".join(plan.header["warnings"])
        if plan.kind == "empty":
            return _write_empty(job, slide_id, plan, record)
        coords = np.frombuffer(plan.payload, "<i8").reshape(-1, 2)
        task = bar.add_task(escape(slide_id), total=len(coords))
        try:
            for frame in frames:
                shape = (frame.header["count"], settings.patch_size, settings.patch_size, 3)
                patches = np.frombuffer(frame.payload, np.uint8).reshape(shape)
                with job.device_lock:
                    rows.append(_features(job.encoder, patches))
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
            source=str(slide.path),
        )
    except BagError as error:  # a feature that is not finite, or patches that are missing
        raise SlideError("encode", str(error)) from error
    made_with = {**record, "empty": False, "reason": warnings, "patches": len(coords)}
    geometry = _geometry(job, slide_id, plan)
    try:
        trident.write_patches(job.patches_path(slide_id), coords, geometry, made_with)
        # Features last: a slide that has features is complete.
        trident.write_features(job.features_path(slide_id), bag, geometry, made_with, kind=job.kind)
    except (OSError, StoreError) as error:
        raise SlideError("write", str(error)) from error
    return "done", "", warnings, len(coords)


def _features(encoder: PatchEncoder, patches: np.ndarray) -> np.ndarray:
    """float32 [B, D] of patches uint8 [B, H, W, 3]. Raises SlideError (stage encode) if the encoder refuses them."""
    try:
        features = encoder(patches)
    except InputError as error:
        raise SlideError("encode", str(error)) from error
    if features.shape != (len(patches), encoder.width) or features.dtype != np.float32:
        expected = f"float32 {(len(patches), encoder.width)}"
        raise SlideError("encode", f"{encoder.name} returned {features.dtype} {features.shape}, expected {expected}")
    return features


def _write_empty(job: Job, slide_id: str, plan: Frame, record: dict[str, Any]) -> Ending:
    """Write a patches file without rows, which tells the next run that the slide is empty, and no feature file."""
    reason = "; ".join([plan.header["reason"], *plan.header["warnings"]])
    made_with = {**record, "empty": True, "reason": reason, "patches": 0}
    features = job.features_path(slide_id)
    try:
        # Features left there are damaged or to be overwritten.
        commit.sidecar_path(features).unlink(missing_ok=True)
        features.unlink(missing_ok=True)
        trident.write_patches(job.patches_path(slide_id), np.zeros((0, 2)), _geometry(job, slide_id, plan), made_with)
    except (OSError, StoreError) as error:
        raise SlideError("write", str(error)) from error
    return "empty", "tissue", reason, 0


def _geometry(job: Job, slide_id: str, plan: Frame) -> trident.Geometry:
    width, height = plan.header["size_level0"]
    mpp = plan.header["mpp"]
    size = plan.header.get("patch_size_level0", job.settings.patch_size * job.settings.mpp / mpp)
    return trident.Geometry(
        patch_size=job.settings.patch_size,
        patch_size_level0=size,
        level0_magnification=trident.magnification(mpp),
        # Of the patches as read: other readers rely on its ratio to level 0 being that of the patch sizes.
        target_magnification=trident.magnification(mpp) * job.settings.patch_size / size,
        overlap=job.settings.overlap,
        level0_width=width,
        level0_height=height,
        level0_mpp=mpp,
        name=slide_id,
        # Relative, so that the bytes of a file do not depend on --out.
        savetodir=job.folder.name,
    )
