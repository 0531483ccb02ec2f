"""Recall of each class, and the threshold chosen on validation slides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from abbe.metrics.decisions import best_threshold, lines, recall_report


def table(scores: list[float], labels: list[str]) -> pd.DataFrame:
    names = [f"s{number}" for number in range(len(scores))]
    return pd.DataFrame({
        "slide_id": names, "case_id": names, "split": "test", "label": labels,
        "p_mutant": [1 - score for score in scores], "p_wild": scores,
    })  # fmt: skip


# All scores are above 0.5, and yet they rank every slide correctly.
RARE = table([0.8, 0.82, 0.9, 0.91, 0.95, 0.97], ["mutant", "mutant", "wild", "wild", "wild", "wild"])


def test_a_class_that_is_never_predicted_is_said_and_the_threshold_mends_it() -> None:
    report = recall_report(RARE, chosen_on=RARE, draws=50)
    assert report["recall"]["mutant"]["value"] == 0.0
    assert report["recall"]["wild"]["value"] == 1.0
    threshold = report["threshold"]
    assert threshold["class"] == "wild"
    assert threshold["value"] == pytest.approx(0.86)
    assert threshold["balanced_accuracy"]["value"] == 1.0
    assert threshold["recall"]["mutant"]["value"] == 1.0
    text = "\n".join(lines(report))
    assert "no slide of mutant is predicted as such" in text
    assert "0.86 for wild" in text


def test_without_validation_slides_there_is_no_threshold() -> None:
    report = recall_report(RARE, draws=20)
    assert report["threshold"] is None
    assert "threshold" not in "\n".join(lines(report))


def test_a_class_without_slides_has_no_recall() -> None:
    report = recall_report(RARE[RARE["label"] == "wild"], draws=20)
    assert report["recall"]["mutant"]["value"] is None
    assert "warning" not in "\n".join(lines(report))


def test_the_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    score = np.clip(0.3 + 0.1 * labels + rng.normal(0, 0.1, 60), 0, 1).round(2)

    def balanced(threshold: float) -> float:
        hits = score >= threshold
        return (hits[labels == 1].mean() + (~hits[labels == 0]).mean()) / 2

    found = best_threshold(labels, np.stack([1 - score, score], 1))
    assert found is not None
    assert balanced(found) == pytest.approx(max(balanced(t) for t in np.linspace(0, 1, 2001)))
    assert balanced(found) > balanced(0.5)


def test_the_threshold_is_half_if_nothing_is_better_and_none_for_three_classes() -> None:
    labels = np.array([0, 0, 1, 1])
    score = np.array([0.1, 0.2, 0.8, 0.9])
    assert best_threshold(labels, np.stack([1 - score, score], 1)) == 0.5
    assert best_threshold(labels, np.full((4, 3), 1 / 3)) is None
    assert best_threshold(np.ones(4, int), np.stack([1 - score, score], 1)) is None


def test_equal_probabilities_leave_the_threshold_at_half() -> None:
    labels = np.array([0, 0, 1])
    for score in (0.2, 0.5, 0.9):
        assert best_threshold(labels, np.array([[1 - score, score]] * 3)) == 0.5
