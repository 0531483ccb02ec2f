"""Speed of the embedded patch encoder in patches per second, and the accuracy of a linear probe on it."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from abbe.bench.labelled_patches import LabelledPatches, read_patches
from abbe.bench.probe import FOLDS, INNER_FOLDS, PENALTIES, TASKS, colour_histogram, probe
from abbe.bench.record import about, circumstances, table
from abbe.bench.robustness import CHANGES, GAINS, robustness
from abbe.bench.settings import TextureSettings
from abbe.console import progress
from abbe.errors import ConfigError
from abbe.metrics.bootstrap import shown
from abbe.phantom.render.tissue import TISSUE_CLASSES, render, site_stain
from abbe.slides.patch_encoders import create_patch_encoder


def bench_texture(run: TextureSettings) -> dict[str, Any]:
    """Patches per second, and the probe if patches are given. Raises InputError for invalid options before any work."""
    for option, value in (
        ("--repeats", run.repeats),
        ("--rounds", run.rounds),
        ("--per-class", run.per_class),
        ("--per-group", run.per_group),
    ):
        if value < 1:
            raise ConfigError(f"{option} must be at least 1, got {value}")
    data = None if run.patches is None else read_patches(run.patches)
    found = {
        "circumstances": circumstances("bench texture", TextureSettings, run),
        "version": create_patch_encoder("texture").version,
        **_speed(run),
    }
    return found if data is None else {**found, "probe": _probe(run, data)}


def _speed(run: TextureSettings) -> dict[str, Any]:
    """Patches per second by wall time and by CPU time, median and minimum over rounds."""
    stain = site_stain(0, 0, 0)
    patches = np.stack(
        [
            render(1000 * number, 0, run.side, run.side, cls, stain=stain, seed=number)
            for cls in range(len(TISSUE_CLASSES))
            for number in range(run.per_class)
        ]
    )
    encode = create_patch_encoder("texture")
    wall, cpu = [], []
    with threadpool_limits(1):
        encode(patches[:4])
        for _ in range(run.rounds):
            start, start_cpu = time.perf_counter(), time.process_time()
            encode(patches)
            wall.append(len(patches) / (time.perf_counter() - start))
            cpu.append(len(patches) / (time.process_time() - start_cpu))
    return {
        "patches": len(patches),
        "side": run.side,
        "rounds": run.rounds,
        "load": os.getloadavg()[0],
        "per_second_wall": {"median": statistics.median(wall), "min": min(wall)},
        "per_second_cpu": {"median": statistics.median(cpu), "min": min(cpu)},
    }


def _probe(run: TextureSettings, data: LabelledPatches) -> dict[str, Any]:
    """The probe's result, and all that is needed to reproduce it."""
    encode = create_patch_encoder("texture")
    batches = [data.patches[start : start + 64] for start in range(0, len(data.patches), 64)]
    with threadpool_limits(1):
        with progress("encoding patches", len(batches)) as bar:
            rows = []
            for batch in batches:
                rows.append(encode(batch))
                bar.advance(bar.task_ids[0])
        features = {"texture": np.concatenate(rows), "histogram": colour_histogram(data.patches)}
        with progress("probing", len(TASKS) * len(features) * run.repeats) as bar:
            tasks = probe(features, data, run.repeats, bar)
        with progress("changing patches", len(CHANGES)) as bar:
            changed = robustness(encode, features["texture"], data, per_group=run.per_group, bar=bar)
    return {
        "patches": len(data.patches),
        "side": data.patches.shape[1],
        "left_out": data.left_out,
        "sha256": data.sha256,
        "folds": FOLDS,
        "inner_folds": INNER_FOLDS,
        "penalties": PENALTIES,
        "seeds": list(range(run.repeats)),
        "tasks": tasks,
        "robustness": changed,
    }


def markdown(found: dict[str, Any]) -> str:
    """The result as a page."""
    rows = [
        [clock, f"{found[key]['median']:.1f}", f"{found[key]['min']:.1f}"]
        for clock, key in (("wall", "per_second_wall"), ("CPU time", "per_second_cpu"))
    ]
    judged = "" if "probe" not in found else _probe_markdown(found["probe"])
    return f"""# `texture` {found["version"]}: patches per second on one core

{about(found["circumstances"])}
{found["patches"]} rendered patches of {found["side"]} × {found["side"]} pixels, all twelve classes, one thread,
{found["rounds"]} rounds. Load of the machine over the last minute: {found["load"]:.1f}.

{table(["clock", "median", "minimum"], rows)}{judged}"""


def _probe_markdown(found: dict[str, Any]) -> str:
    rows = []
    for name, task in found["tasks"].items():
        counts = f"{task['texture']['n']} / {task['texture']['groups']}"
        cells = [task[key] for key in ("texture", "histogram", "difference")]
        rows.append([name, counts, *map(shown, cells)])
    columns = ["task", "patches / groups", "`texture`", "colour histogram", "difference"]
    seeds = found["seeds"]
    broken = found["left_out"]
    left_out = f"Left out because they cannot be read: {len(broken)} ({', '.join(broken)}).\n\n" if broken else ""
    hashes = "\n".join(f"- `{name}` {digest}" for name, digest in found["sha256"].items())
    return f"""
## Linear probe on {found["patches"]} patches of {found["side"]} pixels

Balanced accuracy with 95 % intervals. Features standardised, ridge classification, penalty from
{", ".join(f"{penalty:g}" for penalty in found["penalties"])} by {found["inner_folds"]} folds within the training
folds; {found["folds"]} stratified folds that keep the patches of a group together, seeds {seeds[0]} to {seeds[-1]}.
Both features have the same folds; the histogram has 8 × 8 × 8 colours, as square roots of their shares. Intervals
resample groups, given the share of seeds in which each patch was classified correctly; the difference is paired.

{table(columns, rows)}
{_robustness_markdown(found["robustness"])}
{left_out}{hashes}
"""


def _robustness_markdown(found: dict[str, Any]) -> str:
    """Accuracy and loss in points of every task, a row for each change."""
    tasks = found["tasks"]
    names = list(next(iter(tasks.values())))
    rows = [[name, *(_accuracy_and_loss(task[name], name) for task in tasks.values())] for name in names]
    return f"""
### Changed patches

The probe is fitted on patches as they are and reads held-out groups, up to {found["per_group"]} patches of each
({found["patches"]} in all), after a change: balanced accuracy; in brackets the loss in points, with its paired 95 %
interval. JPEG with its quality, chroma halved; blur: Gaussian, sigma in pixels; noise: sd in grey levels; scale:
enlarged; colour shift: red, green and blue times {", ".join(map(str, GAINS))}. One five-fold cross-validation, seed 0.

{table(["change", *tasks], rows)}"""


def _accuracy_and_loss(found: dict[str, Any], name: str) -> str:
    accuracy, loss = found["accuracy"]["value"], found["loss"]
    if name == "unchanged":
        return f"{accuracy:.3f}"
    points = (100 * loss[key] + 0.0 for key in ("value", "low", "high"))
    return "{:.3f} ({:.1f} [{:.1f}, {:.1f}])".format(accuracy, *points)
