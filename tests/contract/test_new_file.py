"""One file adds a method: registered, under the contract, trained, in the tables, and nothing else is edited."""

from __future__ import annotations

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
from contract.checks import CHECKS

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "adding.md"
FILE = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]  # what the docs tell people to write


@pytest.fixture
def largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a method whose file lies in a folder of its own."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "largest.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(condensers, "__path__", [*condensers.__path__, str(tmp_path / "methods")])
    yield "largest"
    sys.modules.pop("abbe.condensers.largest", None)


def test_a_new_file_keeps_the_contract(largest: str) -> None:
    assert largest in list_condensers()
    for check in CHECKS.values():
        check(condenser_class(largest), largest)


@pytest.mark.slow
def test_a_new_file_trains_and_is_loaded_again(largest: str, tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path)
    run = TrainClassify(
        features=features, labels=labels, out=tmp_path / "run", condenser=largest, recipe=Recipe(epochs=2, lr=1e-2)
    )
    assert run.run() == 0
    scale = load(str(tmp_path / "run" / "model")).condenser.scale
    assert not torch.equal(scale, torch.ones_like(scale))


@pytest.mark.slow
def test_a_new_file_is_measured_by_the_needle_benchmark(largest: str, tmp_path: Path) -> None:
    run = BenchNeedle(
        out=tmp_path, condensers=(largest, "none"), tokens=5, fractions=(0.05,), seeds=(0,), rates=(1e-3,), epochs=1,
        slides=(12, 6, 8), patches=40, bank=BankPlan(sites=1, normal=(1, 1, 1), tumour=(1, 1, 1)), draws=50, workers=1,
    )  # fmt: skip
    text = markdown(bench_needle(run))
    assert "| largest-5-attention | 0." in text or "| largest-5-attention | 1." in text
    assert "| largest-5-attention − none-1-attention |" in text


def test_a_new_file_stands_in_the_tables(largest: str) -> None:
    assert f"| `{largest}` | means | yes |" in markdown_table()
    assert any(row.row.startswith(f"{largest}, ") for row in other_rows())
