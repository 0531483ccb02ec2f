"""`abbe bench slots`."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.bench.settings import SlotsSettings
from abbe.verbs.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class BenchSlots(SlotsSettings, Benchmark):
    """Train TC-SSA with several λ and several seeds, and measure how the slots are used.

    Example:
      abbe bench slots --out bench-slots --results benchmarks/results
      abbe bench slots --out bench-slots --mosaic lc25000

    Every seed has its own cohort, bank split and initialisation; banks of different seeds share no patch. A share of
    the patches is replaced by artefacts (out of focus, pen, fold). Everything is measured on held-out patients in eval
    mode. Finished runs in OUT are read back.
    """

    def run(self) -> int:
        from abbe.bench.slots import bench_slots, markdown

        found = bench_slots(self)
        self.publish("slots" if self.standardize else "slots-raw", found, markdown(found))
        return 0
