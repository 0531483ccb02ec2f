from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from abbe.errors import TableError
from abbe.metrics.bootstrap import patient_bootstrap, resample_patients, seeds_and_patients_bootstrap
from abbe.metrics.classification import auroc, balanced_accuracy
from abbe.metrics.predictions import all_metrics, read_predictions, write_predictions


def test_known_values() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.55, 0.45], [0.2, 0.8]])
    assert auroc(labels, probabilities) == 0.75
    assert balanced_accuracy(labels, probabilities) == 0.5
    assert np.isnan(auroc(np.zeros(4, int), probabilities))
    three = np.eye(3)[[0, 1, 2, 0]]
    assert auroc(np.array([0, 1, 2, 0]), three) == 1.0


def test_slides_of_a_patient_come_and_go_together() -> None:
    cases = ["p", "p", "q", "r", "r", "r"]
    for rows in resample_patients(cases, 50, seed=0):
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[1]
        assert counts[3] == counts[4] == counts[5]
        assert counts[0] + counts[2] + counts[3] == 3


def test_the_interval_has_the_width_theory_gives() -> None:
    """Mean of n normal values: the 95 % interval is about ± 1.96 / √n; by pairs of equal slides it is √2 wider."""
    values = np.random.default_rng(0).normal(size=400)
    single = patient_bootstrap([str(k) for k in range(400)], lambda rows: float(values[rows].mean()), draws=2000)
    assert single.high - single.low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert single.low < values.mean() < single.high
    twice = np.repeat(values[:200], 2)
    paired = patient_bootstrap([str(k // 2) for k in range(400)], lambda rows: float(twice[rows].mean()), draws=2000)
    assert paired.high - paired.low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.12)
    assert (paired.n, paired.patients) == (400, 200)


def test_seeds_widen_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=300)
    cases = [str(k) for k in range(300)]
    same = seeds_and_patients_bootstrap(cases, [lambda rows: float(values[rows].mean())] * 3)
    shifted = [lambda rows, s=s: float(values[rows].mean()) + s for s in (-0.3, 0.0, 0.3)]
    wider = seeds_and_patients_bootstrap(cases, shifted)
    assert wider.high - wider.low > 1.5 * (same.high - same.low)
    assert wider.value == pytest.approx(same.value)


def test_resamples_without_a_class_are_counted_not_hidden() -> None:
    table = pd.DataFrame(
        {
            "slide_id": list("abc"),
            "case_id": list("abc"),
            "split": "test",
            "label": ["x", "x", "y"],
            "predicted": ["x", "x", "y"],
            "p_x": [0.9, 0.8, 0.1],
            "p_y": [0.1, 0.2, 0.9],
        }
    )
    got = all_metrics(table, draws=500)["auroc"]
    assert got.value == 1.0
    assert 200 < got.resamples < got.drawn == 500


def test_predictions_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pd.DataFrame({"slide_id": ["001"], "case_id": ["1"], "split": ["test"], "label": ["x"], "p_x": [0.4]})
    write_predictions(path, table)
    with pytest.raises(TableError, match="at least two classes"):
        read_predictions(path)
    write_predictions(path, table.drop(columns="case_id"))
    with pytest.raises(TableError, match=r"p\.parquet: no column 'case_id'"):
        read_predictions(path)
    path.write_text("no parquet")
    with pytest.raises(TableError, match="cannot be read as a parquet table"):
        read_predictions(path)
