"""`abbe evaluate classify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from abbe.console import result
from abbe.evaluate.settings import EvaluationSettings


@dataclass(frozen=True, kw_only=True)
class EvaluateClassify(EvaluationSettings):
    """Evaluate a classifier on the slides of a labels table, with 95 % confidence intervals over patients.

    Example:
      abbe evaluate classify --model run/model --features features --labels labels.csv --split test --out figures
      abbe evaluate classify --from run/predictions.parquet --split test --out figures
    """

    out: Path
    """folder for predictions.parquet and result.json"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.evaluate.protocols.classify import evaluate_classifier
        from abbe.metrics.bootstrap import shown
        from abbe.metrics.decisions import lines as recall_lines

        report = evaluate_classifier(self, self.out)
        lines = [f"slides: {report['slides']}, patients: {report['patients']}", *report["remarks"]]
        lines += [f"{name}: {shown(value)}" for name, value in report["metrics"].items()]
        lines += recall_lines(report)
        result("\n".join(lines), report, json_output=self.json)
        return 0
