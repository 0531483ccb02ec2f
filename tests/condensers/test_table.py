"""The table of methods in the docs, and what the pages of the methods cite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from abbe.condensers import condenser_class, list_condensers, markdown_table
from abbe.condensers.__main__ import BEGIN, END, write_table
from abbe.errors import InputError
from conftest import ROOT

METHODS = ROOT / "docs" / "methods"
PAGES = [name for name in list_condensers() if (METHODS / f"{name}.md").is_file()]


def test_no_row_of_the_docs_is_out_of_date() -> None:
    """A new method is missing on the page until it is written again, but what the page says of a method is true."""
    page = (METHODS / "baselines.md").read_text(encoding="utf-8")
    rows = page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip().splitlines()
    old = [row for row in rows if row not in markdown_table().splitlines()]
    assert not old, "out of date; run: python -m abbe.condensers docs/methods/baselines.md"
    assert len(rows) > 2


def test_the_table_is_written_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n", encoding="utf-8")
    write_table(page)
    written = page.read_text(encoding="utf-8")
    assert written == f"before\n{BEGIN}\n{markdown_table()}\n{END}after\n"
    write_table(page)
    assert page.read_text(encoding="utf-8") == written
    page.write_text(f"before\n{END}{BEGIN}", encoding="utf-8")
    with pytest.raises(InputError, match=r"page\.md: expected the lines '<!-- methods.*' and, after it, '<!-- end"):
        write_table(page)


@pytest.mark.slow
def test_the_module_prints_the_table() -> None:
    done = subprocess.run([sys.executable, "-m", "abbe.condensers"], capture_output=True, text=True, check=True)
    assert done.stdout == markdown_table()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_a_method_cites_its_references(name: str) -> None:
    text = " ".join((METHODS / f"{name}.md").read_text(encoding="utf-8").replace("*", "").split())
    references = condenser_class(name).references
    assert references
    missing = [reference for reference in references if reference not in text]
    assert not missing, f"docs/methods/{name}.md does not cite {missing}"
