from __future__ import annotations

from pathlib import Path

import pytest

from abbe.bench.needle import bench_needle, contenders, curves_figure, markdown
from abbe.bench.settings import NeedleSettings
from abbe.condensers import condenser_class
from abbe.phantom.settings import BankPlan


def test_one_budget_for_all_methods_that_have_one() -> None:
    run = NeedleSettings(out=Path(), condensers=("tcssa", "slim", "mean", "none"), tokens=16)
    assert [c.name for c in contenders(run)] == [
        "tcssa-16-attention",
        "slim-16-attention",
        "mean-1-mean",
        "none-1-attention",
    ]


def test_a_sweep_enters_every_combination_of_a_grid() -> None:
    run = NeedleSettings(out=Path(), condensers=("tcssa", "slim", "mean", "none"), sweep=True)
    entered = contenders(run)
    grid = condenser_class("tcssa").grid
    assert set(grid) == {"tokens", "aux_weight"}
    swept = [(c.tokens, c.options) for c in entered if c.condenser == "tcssa"]
    assert swept == [(k, (f"aux_weight={weight}",)) for k in grid["tokens"] for weight in grid["aux_weight"]]
    assert [c.tokens for c in entered if c.condenser == "slim"] == condenser_class("slim").grid["tokens"]
    assert [c.name for c in entered if c.condenser in ("mean", "none")] == ["mean-1-mean", "none-1-attention"]
    assert "tcssa-16-attention-aux_weight=0.01" in [c.name for c in entered]
    assert len({c.name for c in entered}) == len(entered)


@pytest.mark.long
def test_a_sweep_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condenser_class("tcssa"), "grid", {"tokens": [2, 4], "aux_weight": [0.0, 1.0]})
    run = NeedleSettings(
        out=tmp_path, condensers=("tcssa", "none"), sweep=True, fractions=(0.1,), tune_at=0.1, seeds=(0,),
        rates=(1e-3,), slides=(12, 6, 8), patches=40, epochs=1, draws=20, workers=1,
        bank=BankPlan(sites=1, normal=(2, 1, 1), tumour=(2, 1, 1)),
    )  # fmt: skip
    found = bench_needle(run)
    swept = {f"tcssa-{k}-attention-aux_weight={weight}" for k in (2, 4) for weight in ("0.0", "1.0")}
    assert set(found["minus_none"]) == swept
    assert set(found["curves"]) == {*swept, "none-1-attention", "ceiling", "oracle"}
    assert all(f"| {name} | " in markdown(found) for name in swept)
    assert len(curves_figure(found).axes[0].lines) == 7
    assert found["circumstances"]["command"].startswith("abbe bench needle --out ")
    assert " --sweep " in found["circumstances"]["command"]
