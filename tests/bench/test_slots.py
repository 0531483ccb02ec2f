from __future__ import annotations

import json

import pytest

from abbe.bench.slots import bench_slots
from abbe.phantom.settings import BankPlan
from abbe.verbs.bench_slots import BenchSlots


@pytest.mark.slow
def test_a_small_study_has_every_figure_and_resumes(tmp_path, capsys):
    study = BenchSlots(
        out=tmp_path / "out",
        results=tmp_path / "results",
        weights=(0.0, 1.0),
        seeds=(0, 1),
        slides=(8, 4, 6),
        patches=100,
        fraction=0.05,
        epochs=1,
        tokens=8,
        bank=BankPlan(sites=1, normal=(1, 1, 1), tumour=(1, 1, 1)),
        draws=20,
        workers=1,
    )
    assert study.run() == 0
    (result,) = (tmp_path / "results").glob("*-slots.json")
    found = json.loads(result.read_text())
    variants = [(0.0, "mask"), (1.0, "mask"), (0.0, "constant")]
    for row, variant in zip(found["fillings"]["phantom"], variants, strict=True):
        assert (row["weight"], row["dead_slots_are"]) == variant
        assert 1 / 8 <= row["top1_share"]["value"] <= row["top1_share_of_a_slide"]["value"] <= 1
        assert row["top1_share"]["value"] <= row["top2_membership"]["value"]
        assert 0 <= row["dead_slots"]["value"] < 8
        assert row["auroc"]["n"] == 12
        assert row["auroc"]["low"] <= row["auroc"]["value"] <= row["auroc"]["high"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    assert len(before) == 6
    assert bench_slots(study)["fillings"] == found["fillings"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    printed = capsys.readouterr().out
    assert "λ = 1" in printed
    assert "λ = 0, constant" in printed
