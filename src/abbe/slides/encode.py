"""Slides in, bags of patch features out, one outcome per slide."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

from abbe.config import to_dict
from abbe.console import progress
from abbe.errors import ConfigError, InputError
from abbe.slides.find import find_slides
from abbe.slides.job import Job, encode_one, interrupted
from abbe.slides.patch_encoders import PatchEncoder, create_patch_encoder
from abbe.slides.settings import EncodeSettings
from abbe.store import commit
from abbe.store.outcomes import Outcome, write_outcomes

_MOST_WORKERS = 8  # by default: beyond, disks and decoders rarely keep up


def encode_slides(slides: Sequence[Path], out: str | Path, settings: EncodeSettings | None = None) -> list[Outcome]:
    """Encode slides and folders of slides; outcomes in the order of the inputs, also committed to out/outcomes.csv.

    One slide's failure is a row, never the end of the run; an interrupted run too writes a row for every slide. Raises
    InputError before any work for a path that does not exist or folders without slides.
    """
    settings = settings or EncodeSettings()
    found = find_slides(slides)  # before the encoder, whose weights may take long to load
    encoder = create_patch_encoder(settings.encoder, device=settings.device, precision=settings.precision)
    if encoder.patch_size not in (None, settings.patch_size):
        raise ConfigError(
            f"--patch-size is {settings.patch_size}; the encoder {settings.encoder} needs {encoder.patch_size}"
        )
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: no folder can be made there ({error.strerror})") from error
    own = {item.name for item in fields(EncodeSettings)}
    options = {key: value for key, value in to_dict(settings).items() if key in own}
    config = {"slides": [commit.printable(slide) for slide in slides], "out": commit.printable(out), **options}
    commit.write_json(out / "config.json", config, format="abbe-config")
    job = Job(out, encoder, settings, halt=threading.Event(), device_lock=_device_lock(encoder))
    pool = ThreadPoolExecutor(settings.workers or min(_cores(), _MOST_WORKERS))
    with progress("encoding slides", len(found)) as bar:
        overall = bar.task_ids[0]
        # Threads: each waits for its own child process, and the encoder's arrays leave the interpreter free.
        futures = [pool.submit(encode_one, job, slide, bar) for slide in found]
        try:
            for future in futures:
                future.add_done_callback(lambda _: bar.advance(overall))
            for future in futures:
                future.result()
        except BaseException:
            job.halt.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            outcomes = [
                interrupted(slide) if future.cancelled() else future.result()
                for slide, future in zip(found, futures, strict=True)
            ]
            write_outcomes(out / "outcomes.csv", outcomes)
    return outcomes


def _device_lock(encoder: PatchEncoder) -> AbstractContextManager[Any]:
    """Held while the encoder computes: a GPU takes one batch at a time."""
    on_gpu = getattr(getattr(encoder, "device", None), "type", "cpu") != "cpu"
    return threading.Lock() if on_gpu else contextlib.nullcontext()


def _cores() -> int:
    """Cores this process may use: a batch system's job has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
