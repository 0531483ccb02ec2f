"""Writes the table of all condensers into docs/methods/baselines.md, between its two markers. Run by `make docs`."""

from pathlib import Path

from abbe.condensers import markdown_table

PAGE = Path(__file__).parent / "methods" / "baselines.md"
START, END = "<!-- table of condensers -->\n\n", "\n<!-- end of table -->"

before, start, rest = PAGE.read_text(encoding="utf-8").partition(START)
_, end, after = rest.partition(END)
if not start or not end:
    raise SystemExit(f"{PAGE}: the markers {START.strip()} and {END.strip()} are missing")
PAGE.write_text(before + start + markdown_table() + end + after, encoding="utf-8")
