"""`abbe cohort realism`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from abbe.console import result
from abbe.phantom.settings import RealismSettings


@dataclass(frozen=True, kw_only=True)
class Realism(RealismSettings):
    """Show rendered patches beside real ones, and measure how well a linear probe separates them.

    Example:
      abbe cohort realism lc25000 --out realism

    Writes OUT/phantom-and-real.png, OUT/phantom.png (the rendered row alone) and OUT/realism.json. All patches have
    one size and are compressed as JPEG. Rendered patches of one class, site and stain setting are one group, real
    ones have the groups of index.csv, and no group is in two folds. Patches that cannot be read are named in the
    record; the exit code is 1 then.
    """

    patches: tyro.conf.Positional[tuple[Path, ...]]
    """folders with a folder or zip per class, or such zips"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.data.labelled_images import skipped_classes
        from abbe.phantom.realism import realism

        found = realism(self)
        value, counts = found["balanced_accuracy"], found["patches"]
        text = f"balanced accuracy {value:.3f}: {counts['rendered']} rendered and {counts['real']} real patches"
        result("\n".join([text, *skipped_classes(found["other_classes"])]), found, json_output=self.json)
        return 1 if found["broken"] else 0
