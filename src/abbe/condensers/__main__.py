"""Print the table of methods, or write it into a page: `python -m abbe.condensers [PAGE]`."""

from __future__ import annotations

import sys
from pathlib import Path

from abbe.condensers import markdown_table
from abbe.errors import InputError

BEGIN, END = "<!-- methods: python -m abbe.condensers -->\n", "<!-- end of methods -->\n"


def write_table(page: Path) -> None:
    """Replace what is between the marker lines BEGIN and END of a Markdown page by the table."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(f"{page}: expected the lines {BEGIN.strip()!r} and, after it, {END.strip()!r}")
    page.write_text(f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_table(Path(sys.argv[1]))
    else:
        sys.stdout.write(markdown_table())
