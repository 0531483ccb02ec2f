"""`abbe bench flops`."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.verbs.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class BenchFlops(Benchmark):
    """Count the operations of every method, and compare them with the published figures.

    Example:
      abbe bench flops
      abbe bench flops --json
    """

    def run(self) -> int:
        from abbe.bench.flops import bench_flops, markdown

        found = bench_flops()
        self.publish("flops", found, markdown(found), printed=found["rows"])
        return 0
