"""`encode_slides`: slides in, bags of patch features out, one outcome per slide."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from abbe.config import only
from abbe.console import progress
from abbe.errors import ConfigError, InputError
from abbe.slides.find import find_slides
from abbe.slides.job import Job, encode_one, interrupted
from abbe.slides.patch_encoders import create_patch_encoder
from abbe.slides.settings import EncodeSettings
from abbe.store import commit
from abbe.store.outcomes import Outcome, write_outcomes

_MAX_DEFAULT_WORKERS = 8  # disks and decoders rarely keep up with more


def encode_slides(slides: Sequence[Path], out: str | Path, settings: EncodeSettings | None = None) -> list[Outcome]:
    """Encode slides and folders of slides; outcomes in the order of the inputs, also committed to out/outcomes.csv.

    A slide that fails is a row and does not end the run; an interrupted run also writes a row for every slide. Raises
    InputError before any work for a path that does not exist and for a folder without slides.
    """
    settings, out = settings or EncodeSettings(), Path(out)
    found = find_slides(slides)  # before the encoder, which may take long to load
    encoder = create_patch_encoder(settings.encoder, device=settings.device, precision=settings.precision)
    if encoder.patch_size not in (None, settings.patch_size):
        raise ConfigError(
            f"--patch-size is {settings.patch_size}; the encoder {settings.encoder} needs {encoder.patch_size}"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: the folder cannot be made ({error.strerror})") from error
    inputs = {"slides": [commit.printable(slide) for slide in slides], "out": commit.printable(out)}
    commit.write_json(out / "config.json", {**inputs, **only(EncodeSettings, settings)}, format="abbe-config")
    # A GPU takes one batch at a time.
    on_gpu = getattr(getattr(encoder, "device", None), "type", "cpu") != "cpu"
    device_lock = threading.Lock() if on_gpu else contextlib.nullcontext()
    job = Job(out, encoder, settings, halt=threading.Event(), device_lock=device_lock)
    # The cores this process may use, which can be fewer than the machine has; not every system says which.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(settings.workers or min(cores, _MAX_DEFAULT_WORKERS))
    with progress("encoding slides", len(found)) as bar:
        overall = bar.task_ids[0]
        # Threads are enough: they wait for their reader processes, and the encoder releases the interpreter lock.
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
