"""report.html: one self-contained page of tables and pictures, which loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from abbe.store.commit import write_text
from abbe.version import __version__


@dataclass(frozen=True)
class Picture:
    """A PNG and its caption."""

    png: bytes
    caption: str

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading, then paragraphs, then a table, then pictures; each may be empty."""

    title: str
    text: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    pictures: Sequence[Picture] = field(default_factory=tuple)


def write_report(path: Path, title: str, sections: Sequence[Section], *, subtitle: str = "") -> None:
    """Commit the page. All text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("abbe", "view"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    subtitle = subtitle or f"Abbe {__version__}"
    page = environment.get_template("report.html.j2").render(title=title, subtitle=subtitle, sections=sections)
    write_text(path, page, format="report")
