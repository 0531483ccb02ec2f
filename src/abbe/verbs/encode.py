"""`abbe encode`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from abbe.console import result
from abbe.slides.settings import EncodeSettings


@dataclass(frozen=True, kw_only=True)
class Encode(EncodeSettings):
    """Encode slides: find the tissue, cut it into patches, and turn each patch into a feature row.

    Example:
      abbe encode slides/ --out out
      abbe encode slide.svs --out out --mpp 0.5 --override-mpp 0.25

    Writes OUT/<mag>x_<patch>px_<overlap>px_overlap/features_<encoder>/<slide>.h5 (TRIDENT layout), and OUT/outcomes.csv
    with one row per slide. The same command again does only what is missing.
    """

    slides: tyro.conf.Positional[tuple[Path, ...]]
    """slide files, and folders to search for slides"""
    out: Path
    """folder for features and outcomes.csv"""
    json: bool = False
    """print the outcomes as JSON"""

    def run(self) -> int:
        from abbe.slides.encode import encode_slides
        from abbe.store.outcomes import exit_code, summary

        outcomes = encode_slides(self.slides, self.out, self)
        text = summary(outcomes, self.out / "outcomes.csv")
        result(text, [asdict(outcome) for outcome in outcomes], json_output=self.json)
        return exit_code(outcomes)
