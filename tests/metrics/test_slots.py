from __future__ import annotations

import numpy as np
import pytest

from abbe.metrics.bootstrap import nested_bootstrap
from abbe.metrics.slots import ARTEFACT, EVIDENCE, OTHER, USAGE, SlotTable, joined, slide_slots

# Six patches, three slots, two routes each; the fifth has one route, the sixth is dropped. By hand:
INDEX = np.array([[0, 1], [1, 0], [0, 2], [0, 1], [2, -1], [-1, -1]])
WEIGHT = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.8, 0.2], [1.0, 0.0], [0.0, 0.0]])
READ = np.array([0.1, 0.2, 0.3, 0.1, 0.3, 0.0])
KIND = np.array([OTHER, EVIDENCE, EVIDENCE, OTHER, ARTEFACT, OTHER])


def one() -> SlotTable:
    return slide_slots(INDEX, WEIGHT, READ, KIND, 4)


def test_one_slide_counted_by_hand():
    table = one()
    assert table.best[0].tolist() == [[2, 0, 0, 0], [2, 0, 0, 0], [0, 0, 1, 0]]
    assert table.member[0].tolist() == [4, 3, 2, 0]
    assert table.mass[0] == pytest.approx([3.0, 0.7, 1.3, 0.0])
    assert table.read[0] == pytest.approx([0.2, 0.5, 0.3])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top1_share", 4 / 5),
        ("top1_share_of_a_slide", 4 / 5),
        ("top2_membership", 4 / 5),
        ("mass_share", 3.0 / 5.0),
        ("dead_slots", 1),
        ("evidence_purity", 2 / 4),
        ("artefact_slots", 1),
        ("read_from_evidence", 0.5),
        ("read_from_artefacts", 0.3),
    ],
)
def test_the_figures_by_hand(name, value):
    assert USAGE[name](one(), np.array([0])) == pytest.approx(value)


def test_pooled_over_slides_two_popular_slots_are_none():
    mirrored = slide_slots(np.where(INDEX >= 0, 3 - INDEX, -1), WEIGHT, READ, KIND, 4)
    both, rows = joined([one(), mirrored]), np.array([0, 1])
    assert USAGE["top1_share"](both, rows) == pytest.approx(0.4)
    assert USAGE["top1_share_of_a_slide"](both, rows) == pytest.approx(0.8)
    assert USAGE["dead_slots"](both, rows) == 0


def test_a_nested_bootstrap_sees_the_spread_between_repetitions():
    """Five repetitions without spread inside: all that is left is the spread between them."""
    samples = [(["p", "q"], lambda _, k=k: float(k)) for k in range(5)]
    found = nested_bootstrap(samples, draws=2000)
    assert found.value == 2.0
    # The mean of five of 0…4: standard deviation sqrt(2) / sqrt(5) = 0.63.
    assert (found.low, found.high) == (pytest.approx(0.8, abs=0.21), pytest.approx(3.2, abs=0.21))
    assert (found.n, found.patients) == (10, 10)


def test_a_nested_bootstrap_sees_the_spread_between_patients():
    values = np.arange(100.0)
    samples = [([str(k) for k in range(100)], lambda rows: float(values[rows].mean()))] * 3
    found = nested_bootstrap(samples, draws=1000)
    # 28.9 / sqrt(100) within each repetition, over the square root of 3 of them.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 28.9 / np.sqrt(300), rel=0.15)
