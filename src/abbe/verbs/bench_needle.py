"""`abbe bench needle`."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.bench.settings import NeedleSettings
from abbe.verbs.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class BenchNeedle(NeedleSettings, Benchmark):
    """Train every method on needle cohorts of falling evidence, several seeds each, and compare on held-out patients.

    Example:
      abbe bench needle --out bench-needle --results benchmarks/results
      abbe bench needle --out bench-needle --condensers tcssa sparselearn none --fractions 0.01

    Each method's learning rate is the one of --rates with the lowest validation loss at the fraction --tune-at (first
    seed); test slides play no part in it. Every run has the same number of epochs at a constant learning rate, and
    keeps its best epoch on validation slides: attention over all patches often sees nothing for ten epochs before it
    finds a needle, and a schedule that gives up on a plateau would judge patience. Finished runs in OUT are read back.
    """

    def run(self) -> int:
        from abbe.bench.needle import bench_needle, curves_picture, markdown

        found = bench_needle(self)
        self.publish("needle", found, markdown(found), png=curves_picture(found))
        return 0
