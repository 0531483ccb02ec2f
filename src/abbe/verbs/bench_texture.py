"""`abbe bench texture`."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.bench.settings import TextureSettings
from abbe.verbs.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class BenchTexture(TextureSettings, Benchmark):
    """Time `texture` on rendered patches of every tissue class with one thread, and probe it on labelled patches.

    Example:
      abbe bench texture --results benchmarks/results
      abbe bench texture --patches lc25000 --results benchmarks/results
    """

    def run(self) -> int:
        from abbe.bench.texture import bench_texture, markdown

        found = bench_texture(self)
        self.publish("texture", found, markdown(found))
        return 0
