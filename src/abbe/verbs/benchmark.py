"""What all benchmark verbs share: where a dated result goes, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abbe.console import result


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of every benchmark."""

    results: Path | None = None
    """folder for the dated result (json, md and pictures); none is written without it"""
    json: bool = False
    """print the result as JSON"""

    def publish(self, name: str, found: dict[str, Any], page: str, *, png: bytes | None = None) -> None:
        """Print a result, and write it to the folder of results where there is one."""
        if self.results is not None:
            from abbe.bench.record import write_result

            path = write_result(self.results, name, found, page)
            if png is not None:
                path.with_suffix(".png").write_bytes(png)
        result(page, found, json_output=self.json)
