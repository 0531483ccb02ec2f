"""One file adds a method: registered, under the contract, trained, in the tables, and nothing else is edited."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from abbe import condensers
from abbe.bench.flops import other_rows
from abbe.bench.needle import bench_needle, markdown
from abbe.condensers import condenser_class, list_condensers, markdown_table
from abbe.models.hub import load
from abbe.phantom.settings import BankPlan
from abbe.train.recipe import Recipe
from abbe.verbs.bench_needle import BenchNeedle
from abbe.verbs.train_classify import TrainClassify
from builders import write_cohort
from conftest import ROOT
from contract.checks import CHECKS

PAGE = (ROOT / "docs" / "methods" / "adding.md").read_text(encoding="utf-8")
# The files that the page tells people to write, by the name it tells them to save them under.
NAMES = re.findall(r"`src/abbe/condensers/(\w+)\.py`:\n", PAGE)
FILES = dict(zip(NAMES, re.findall(r'^```python\n(""".*?)^```', PAGE, re.MULTILINE | re.DOTALL), strict=True))


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files, which are registered."""
    folder = tmp_path / "methods"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(condensers, "__path__", [*condensers.__path__, str(folder)])
    yield folder
    for name in FILES:
        sys.modules.pop(f"abbe.condensers.{name}", None)


def test_the_page_shows_a_method_that_selects_and_one_that_learns() -> None:
    assert list(FILES) == ["largest", "linear_score"]


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FILES)
def test_a_new_file_keeps_the_contract(name: str, check: str) -> None:
    assert name in list_condensers()
    CHECKS[check](condenser_class(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_new_file_passes_ruff_and_mypy_with_the_settings_of_the_package(name: str, added: Path) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    stdin = ["--stdin-filename", f"src/abbe/condensers/{name}.py", "-"]
    for command in (
        [*ruff, "check", "--no-cache", *stdin],
        [*ruff, "format", "--check", "--no-cache", *stdin],
        [sys.executable, "-m", "mypy", str(added / f"{name}.py")],
    ):
        environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, input=FILES[name], capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, f"{' '.join(command[2:])}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.usefixtures("added")
def test_a_new_file_trains_and_is_loaded_again(tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path)
    weights = []
    for rate in (1e-3, 1e-2):
        out, recipe = tmp_path / f"run-{rate}", Recipe(epochs=1, lr=rate)
        run = TrainClassify(features=features, labels=labels, out=out, condenser="linear_score", recipe=recipe)
        assert run.run() == 0
        weights.append(load(str(out / "model")).condenser.scorer.weight)
    assert not torch.equal(*weights)  # both started from the same weights, so they were trained


@pytest.mark.slow
@pytest.mark.usefixtures("added")
def test_a_new_file_is_measured_by_the_needle_benchmark(tmp_path: Path) -> None:
    run = BenchNeedle(
        out=tmp_path, condensers=("largest", "none"), tokens=5, fractions=(0.05,), seeds=(0,), rates=(1e-3,), epochs=1,
        slides=(12, 6, 8), patches=40, bank=BankPlan(sites=1, normal=(1, 1, 1), tumour=(1, 1, 1)), draws=50, workers=1,
    )  # fmt: skip
    text = markdown(bench_needle(run))
    assert "| largest-5-attention | 0." in text or "| largest-5-attention | 1." in text
    assert "| largest-5-attention − none-1-attention |" in text


@pytest.mark.usefixtures("added")
def test_a_new_file_is_in_the_tables() -> None:
    assert "| `largest` | patches |  |  |" in markdown_table()
    assert "| `linear_score` | patches, changed | yes |" in markdown_table()
    rows = [row.row for row in other_rows()]
    assert all(any(row.startswith(f"{name}, ") for row in rows) for name in FILES)
