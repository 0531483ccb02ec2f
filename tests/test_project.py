"""What surrounds the package agrees with it: CONTRIBUTING.md, CITATION.cff, the hooks and the site's pages."""

from __future__ import annotations

import re

import pytest
import yaml

import abbe
from conftest import ROOT

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_guide_lists_every_room_in_the_order_of_the_layers() -> None:
    tree = GUIDE.partition("## The rooms")[2].split("```")[1]
    listed = [line.split()[0].removesuffix("/").removesuffix(".py") for line in tree.strip().splitlines()]
    source = ROOT / "src" / "abbe"
    rooms = {p.stem for p in source.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()} - {"__init__"}
    assert sorted(listed) == sorted(rooms)
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("layers = [\n")[2].partition("]")[0]
    levels = [re.findall(r"\w+", line) for line in contract.splitlines()][::-1]
    level_of = {room: number for number, level in enumerate(levels) for room in level}
    assert [level_of[room] for room in listed] == sorted(level_of.values())


PATHS = sorted(set(re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./]+)`", GUIDE)))


@pytest.mark.parametrize("path", [path for path in PATHS if "NAME" not in path])
def test_a_path_in_the_guide_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == abbe.__version__


def test_the_hooks_are_the_steps_of_make_check() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    steps = re.findall(r"\$\(BIN\)/([^&\n]+)", makefile.partition("\ncheck:")[2].partition("\n\n")[0])
    commands = {step.strip().replace("--check ", "") for step in steps if "pytest" not in step}
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repository in config["repos"] for hook in repository["hooks"]]
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert {entry.removeprefix(".venv/bin/") for entry in entries} == commands


def test_the_site_has_every_page() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = sorted(
        str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*") if p.suffix in (".md", ".ipynb")
    )
    assert sorted(_leaves(config["nav"])) == pages


def _leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    items = nav if isinstance(nav, list) else list(nav.values()) if isinstance(nav, dict) else []
    return [leaf for item in items for leaf in _leaves(item)]
