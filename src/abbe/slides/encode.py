"""`abbe encode`: slides in, bags of patch features out, one outcome a slide."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from abbe.console import progress, result
from abbe.errors import ConfigError, InputError
from abbe.slides.find import find_slides
from abbe.slides.job import Job, encode_one, interrupted
from abbe.slides.patch_encoders import create_patch_encoder
from abbe.slides.slide import TIME_LIMIT
from abbe.slides.tiling import MPP_RANGE
from abbe.store import commit
from abbe.store.outcomes import Outcome, exit_code, summary, write_outcomes

Precision = Literal["auto", "float32", "float16", "bfloat16"]
_MOST_WORKERS = 8  # by default: beyond, disks and decoders rarely keep up


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
    device: str = "auto"
    """where the encoder computes: auto, cpu, cuda, cuda:1"""
    precision: Precision = "auto"
    """what the encoder computes in"""
    batch_size: int = 32
    """patches the encoder is given at a time"""
    workers: int | None = None
    """slides in flight (default: one a core this process may use, at most 8)"""
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
        text = summary(outcomes, self.out / "outcomes.csv")
        result(text, [dataclasses.asdict(outcome) for outcome in outcomes], json_output=self.json)
        return exit_code(outcomes)


def encode_slides(
    slides: Sequence[Path],
    out: str | Path,
    *,
    encoder: str = "texture",
    mpp: float = 0.5,
    patch_size: int = 256,
    overlap: int = 0,
    override_mpp: float | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int = 32,
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
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
        "workers": workers,
        "time_limit": time_limit,
        "overwrite": overwrite,
    }
    _check_settings(mpp, patch_size, overlap, override_mpp)
    _check_means(batch_size, workers, time_limit)
    found = find_slides(slides)  # before the encoder, whose weights may take long
    made = create_patch_encoder(encoder, device=device, precision=precision)
    if made.patch_size not in (None, patch_size):
        raise ConfigError(f"--patch-size is {patch_size}; the encoder {encoder} is made for {made.patch_size}")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: no folder can be made there ({error.strerror})") from error
    config = {"slides": [commit.printable(slide) for slide in slides], "out": commit.printable(out), **options}
    commit.write_json(out / "config.json", config, format="abbe-config")
    halt = threading.Event()
    on_gpu = getattr(getattr(made, "device", None), "type", "cpu") != "cpu"
    turn = threading.Lock() if on_gpu else contextlib.nullcontext()
    job = Job(out, made, mpp, patch_size, overlap, override_mpp, batch_size, time_limit, overwrite, halt, turn)
    pool = ThreadPoolExecutor(workers or min(_cores(), _MOST_WORKERS))
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
            halt.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            outcomes = [
                interrupted(slide) if future.cancelled() else future.result()
                for slide, future in zip(found, futures, strict=True)
            ]
            write_outcomes(out / "outcomes.csv", outcomes)
    return outcomes


def _cores() -> int:
    """Cores this process may use: a batch system's job has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_settings(mpp: float, patch_size: int, overlap: int, override_mpp: float | None) -> None:
    low, high = MPP_RANGE
    for option, value in (("--mpp", mpp), ("--override-mpp", override_mpp)):
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{option} is {value:g}; microns a pixel lie between {low:g} and {high:g}")
    if patch_size < 32:
        raise ConfigError(f"--patch-size is {patch_size}; a patch has at least 32 pixels a side")
    if not 0 <= overlap < patch_size:
        raise ConfigError(f"--overlap is {overlap}; it must be at least 0 and below the patch size {patch_size}")


def _check_means(batch_size: int, workers: int | None, time_limit: float) -> None:
    for option, value in (("--batch-size", batch_size), ("--workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}; at least 1 is needed")
    if not time_limit > 0:
        raise ConfigError(f"--time-limit is {time_limit:g}; it must be above 0 seconds")
