"""`abbe bench texture`: patches a second of the embedded patch encoder on one core."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from abbe.bench.record import about, circumstances, table, write_result
from abbe.cohorts.tissue import TISSUE_CLASSES, render, site_stain
from abbe.console import result
from abbe.slides.patch_encoders import create_patch_encoder


@dataclass(frozen=True)
class BenchTexture:
    """Time `texture` on rendered patches of every tissue class, one thread.

    Example:
      abbe bench texture --results benchmarks/results
    """

    results: Path | None = None
    """folder for the dated result (json, md); none is written without it"""
    side: int = 256
    """pixels of a patch's side"""
    per_class: int = 4
    """patches of each of the twelve classes in a round"""
    rounds: int = 9
    """rounds timed, after one to warm up"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        found = bench_texture(self)
        text = markdown(found)
        if self.results is not None:
            write_result(self.results, "texture", found, text)
        result(text, found, json_output=self.json)
        return 0


def bench_texture(run: BenchTexture) -> dict[str, Any]:
    """Patches a second by wall time and by CPU time, median and minimum over rounds."""
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
        "circumstances": circumstances(f"abbe bench texture --side {run.side} --results benchmarks/results"),
        "patches": len(patches),
        "side": run.side,
        "rounds": run.rounds,
        "per_second_wall": {"median": statistics.median(wall), "min": min(wall)},
        "per_second_cpu": {"median": statistics.median(cpu), "min": min(cpu)},
    }


def markdown(found: dict[str, Any]) -> str:
    """The result as a page."""
    rows = [
        [clock, f"{found[key]['median']:.1f}", f"{found[key]['min']:.1f}"]
        for clock, key in (("wall", "per_second_wall"), ("CPU time", "per_second_cpu"))
    ]
    return f"""# `texture`: patches a second on one core

{about(found["circumstances"])}
{found["patches"]} rendered patches of {found["side"]} × {found["side"]} pixels, all twelve classes, one thread,
{found["rounds"]} rounds.

{table(["clock", "median", "minimum"], rows)}"""
