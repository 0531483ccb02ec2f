"""`abbe convert`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from abbe.console import result
from abbe.store.settings import ConvertSettings


@dataclass(frozen=True, kw_only=True)
class Convert(ConvertSettings):
    """Convert feature files from any known layout to another, with all checks on the way.

    Example:
      abbe convert features/ --out converted --to tensors
      abbe convert stamp/ --out converted --to trident --slide slides/

    Writes OUT/<slide>.h5 (or .safetensors; for clam OUT/h5_files and OUT/patches), and OUT/outcomes.csv with one row
    per file. The same command again does only what is missing.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """feature files, and folders to search for feature files"""
    out: Path
    """folder for the converted files and outcomes.csv"""
    json: bool = False
    """print the outcomes as JSON"""

    def run(self) -> int:
        from abbe.slides.facts import slide_facts
        from abbe.store.convert import convert_bags
        from abbe.store.outcomes import exit_code, summary

        facts = slide_facts(self.slide) if self.slide else None
        outcomes = convert_bags(self.inputs, self.out, self, facts=facts)
        text = summary(outcomes, self.out / "outcomes.csv")
        result(text, [asdict(outcome) for outcome in outcomes], json_output=self.json)
        return exit_code(outcomes)
