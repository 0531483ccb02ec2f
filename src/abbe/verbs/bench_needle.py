"""`abbe bench needle`."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.bench.settings import NeedleSettings
from abbe.verbs.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class BenchNeedle(NeedleSettings, Benchmark):
    """Train every method on needle cohorts with less and less evidence, and compare on held-out patients.

    Example:
      abbe bench needle --out bench-needle --results benchmarks/results
      abbe bench needle --out bench-needle --condensers tcssa sparselearn none --fractions 0.01
      abbe bench needle --out bench-needle --condensers tcssa --sweep

    Each method's learning rate is the one of --rates with the lowest validation loss at the fraction --tune-at (first
    seed); test slides are not used for it. Every run has the same number of epochs at a constant learning rate and
    keeps its best epoch on validation slides. There is no early stopping: attention over all patches often makes no
    progress for ten epochs before it finds a needle. Finished runs in OUT are read back.
    """

    def run(self) -> int:
        from abbe.bench.needle import bench_needle, curves_figure, markdown

        found = bench_needle(self)
        self.publish("needle", found, markdown(found), figure=curves_figure(found))
        return 0
