"""`abbe train classify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from abbe.console import result
from abbe.evaluate.settings import HoldoutSettings


@dataclass(frozen=True, kw_only=True)
class TrainClassify(HoldoutSettings):
    """Train a slide classifier on features from disk, and evaluate it on held-out patients.

    Example:
      abbe train classify --features out/20x_256px_0px_overlap/features_texture --labels labels.csv --out run

    Writes run/model (load it with abbe.load), history.csv, predictions.parquet, result.json and config.json. Repeat
    the command to resume an interrupted run; a finished run is not repeated.
    """

    out: Path
    """folder of this run"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from accelerate import PartialState

        from abbe.evaluate.protocols.holdout import train_classifier
        from abbe.metrics.bootstrap import shown
        from abbe.metrics.decisions import lines as recall_lines
        from abbe.train.processes import leave_together

        report = train_classifier(self, self.out)
        leave_together()
        if not PartialState().is_main_process:
            return 0
        lines = [f"{name}: {shown(value)}" for name, value in report["metrics"]["test"].items()]
        lines += recall_lines(report) if "recall" in report else []  # a run of an earlier version has none
        text = "\n".join([f"test slides: {report['slides']['test']}", *lines, f"model: {self.out / 'model'}"])
        result(text, report, json_output=self.json)
        return 0
