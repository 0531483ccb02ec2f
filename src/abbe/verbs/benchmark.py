"""What all benchmark verbs share: printing a result and writing it with its date."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abbe.console import result

if TYPE_CHECKING:
    from abbe.view.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options of every benchmark."""

    results: Path | None = None
    """folder for the dated result (json, md and pictures); without it nothing is written"""
    json: bool = False
    """print the result as JSON"""

    def publish(
        self, name: str, found: dict[str, Any], page: str, *, figure: Figure | None = None, printed: Any = None
    ) -> None:
        """Print a result, and write it to --results if given. printed: what --json prints instead of `found`."""
        if self.results is not None:
            from abbe.bench.record import write_result

            path = write_result(self.results, name, found, page)
            if figure is not None:
                from abbe.view.figure import png

                path.with_suffix(".png").write_bytes(png(figure))
        result(page, found if printed is None else printed, json_output=self.json)
