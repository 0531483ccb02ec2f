"""`abbe inspect`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from abbe.console import result
from abbe.inspection.finding import InspectSettings


@dataclass(frozen=True, kw_only=True)
class Inspect(InspectSettings):
    """Identify slides, feature files, tables, benchmark files, models and cohorts, and report their problems.

    Example:
      abbe inspect slide.svs features/slide.h5 labels.csv run/model

    A folder that is not a model, run, cohort or slide is searched, and its files are inspected one by one. The exit
    code is 0 if everything is readable, 1 otherwise.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """files and folders to inspect"""
    json: bool = False
    """print the findings as JSON"""

    def run(self) -> int:
        from abbe.inspection.paths import inspect_paths

        findings = inspect_paths(self.paths, self)
        result(
            "\n\n".join(finding.lines() for finding in findings),
            [asdict(finding) for finding in findings],
            json_output=self.json,
        )
        return int(not all(finding.readable for finding in findings))
