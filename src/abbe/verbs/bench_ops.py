"""`abbe bench ops`."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.bench.settings import OpsSettings
from abbe.verbs.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class BenchOps(OpsSettings, Benchmark):
    """Time and memory of routing N patches into K slots, compared with softmax, topk, scatter and bmm.

    Example:
      abbe bench ops
      abbe bench ops --patches 500000 --rounds 3
    """

    def run(self) -> int:
        from abbe.bench.ops import bench_ops, markdown

        found = bench_ops(self)
        self.publish("ops", found, markdown(found))
        return 0
