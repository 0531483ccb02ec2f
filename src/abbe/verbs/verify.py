"""`abbe verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from abbe.console import result


@dataclass(frozen=True)
class Verify:
    """Check every file of an output folder against the hash in its sidecar.

    Example:
      abbe verify out
    """

    folder: tyro.conf.Positional[Path]
    """output folder to check"""
    json: bool = False
    """print the findings as JSON"""

    def run(self) -> int:
        from abbe.store.verify import MEANING, verify

        counted, found = verify(self.folder)
        lines = [f"{path}: {MEANING[kind]}" for path, kind in found]
        text = "\n".join([*lines, f"{counted['done']} files verified, {len(found)} problems"])
        value = {"whole": counted["done"], "findings": [{"path": path, "kind": kind} for path, kind in found]}
        result(text, value, json_output=self.json)
        return int(bool(found))
