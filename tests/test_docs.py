"""The documentation is run: Python examples are executed, command lines are checked against the real options."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from abbe import cli
from abbe.models.classifier import Classifier
from abbe.models.config import ClassifierConfig
from abbe.models.hub import save_pretrained
from abbe.store.bags import write_bag
from builders import make_bag
from conftest import ROOT

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = sorted([*(ROOT / name for name in TOP), *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what examples take for granted: slide.h5 and run/model."""
    folder = tmp_path_factory.mktemp("docs")
    write_bag(folder / "slide.h5", make_bag(50, dim=256, slide_id="slide"))
    config = ClassifierConfig(256, ("a", "b"), "tcssa", {"tokens": 32, "hidden": 16})
    for name in ("run/model", "this folder"):
        save_pretrained(Classifier(config), folder / name, card="# card\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_python_examples_run(page: Path, place: Path) -> None:
    source = "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", source], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash")], ids=lambda p: p.stem)
def test_command_lines_have_real_verbs_and_options(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    checked = 0
    for line in lines:
        words = shlex.split(line, comments=True)
        if "abbe.cli" in words:
            words = ["abbe", *words[words.index("abbe.cli") + 1 :]]
        if not words or words[0] != "abbe" or words[1].startswith("-"):
            continue
        verb, _ = cli._split(words[1:])
        assert verb is not None, line
        with pytest.raises(SystemExit):
            cli.run([*verb.split(), "--help"])
        help_text = capsys.readouterr().out
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{re.escape(word.split('=')[0])}\b", help_text + "--config --help"), (line, word)
        checked += 1
    assert checked or not any("abbe " in line for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


CITED = re.compile(r"benchmarks/results/([\w.-]+)\.md")
FIGURE = re.compile(r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if CITED.search(p.read_text(encoding="utf-8"))], ids=lambda p: p.stem
)
def test_figures_with_intervals_are_those_of_the_results_a_page_cites(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    results = {name: ROOT / "benchmarks" / "results" / f"{name}.md" for name in CITED.findall(text)}
    measured = {figure for path in results.values() for figure in FIGURE.findall(path.read_text(encoding="utf-8"))}
    assert set(FIGURE.findall(text)) <= measured
