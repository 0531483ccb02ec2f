"""`abbe demo`."""

from __future__ import annotations

from dataclasses import dataclass

from abbe.console import result
from abbe.verbs.settings import DemoSettings


@dataclass(frozen=True, kw_only=True)
class Demo(DemoSettings):
    """Render phantom slides, encode them, train four condensers, compare them, and write a report with pictures.

    Example:
      abbe demo --out demo

    The result is OUT/report.html. Repeating the command runs only missing steps.
    """

    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.metrics.bootstrap import shown
        from abbe.verbs.tour import tour

        report = tour(self)
        rows = [f"  {name:<20} AUROC {shown(row['auroc'])}" for name, row in report["metrics"].items()]
        text = "\n".join(["held-out patients, 95 % confidence intervals:", *rows, f"open {self.out / 'report.html'}"])
        result(text, report, json_output=self.json)
        return 0
