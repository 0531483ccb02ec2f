"""Recall of each class, at the most probable class and at a threshold chosen on validation slides.

With rare classes a classifier can rank all slides correctly (AUROC 1) and still never predict one of the classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from abbe.metrics.bootstrap import Interval, patient_bootstrap, shown
from abbe.metrics.predictions import arrays, class_names, summary


def recall_report(test: pd.DataFrame, *, chosen_on: pd.DataFrame | None = None, draws: int = 1000) -> dict[str, Any]:
    """Recall of every class on the test predictions as plain JSON values, with 95 % intervals over patients.

    {"recall": {class: interval}, "threshold": None, or {"class", "value", "balanced_accuracy", "recall"}}

    chosen_on: predictions on the validation slides, which choose the threshold of a classifier of two classes.
    """
    found: dict[str, Any] = {"recall": summary(_recalls(test, None, draws)), "threshold": None}
    value = None if chosen_on is None else best_threshold(*arrays(chosen_on))
    if value is not None:
        found["threshold"] = {
            "class": class_names(test)[1],
            "value": value,
            "balanced_accuracy": _balanced_accuracy(test, value, draws).as_dict(),
            "recall": summary(_recalls(test, value, draws)),
        }
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """The recalls of a result as text, with a warning for each class that is never predicted."""
    recalls, threshold = report["recall"], report["threshold"]
    said = [f"recall of {name}: {shown(value)}" for name, value in recalls.items()]
    if threshold is not None:
        said.append(
            f"with the threshold {threshold['value']:.3g} for {threshold['class']}, chosen on validation slides: "
            f"balanced accuracy {shown(threshold['balanced_accuracy'])}"
        )
    never = [name for name, value in recalls.items() if value["value"] == 0]
    if never:
        said.append(
            f"warning: no slide of {', '.join(never)} is predicted as such, whatever the AUROC. If the class is rare, "
            "train with --class-weight balanced or --sampling balanced"
            + (", or use the threshold above" if threshold is not None else "")
        )
    return said


def best_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """The threshold on the second class's probability with the best balanced accuracy; of several the nearest to 0.5.

    labels: [n] int.   probabilities: [n, C].   None for more than two classes, or if one has no slide. A threshold that
    separates two neighbouring probabilities lies halfway between them, or at 0.5 if that separates them too.
    """
    if probabilities.shape[1] != 2 or len(np.unique(labels)) < 2:
        return None
    false_alarms, hits, above = roc_curve(labels, probabilities[:, 1], drop_intermediate=False)
    balanced = hits - false_alarms
    above = np.minimum(above, 1.0)  # the first threshold is infinite: no slide reaches it
    below = np.append(above[1:], 0.0)
    middle = np.where((below < 0.5) & (above >= 0.5), 0.5, (below + above) / 2)
    best = middle[np.isclose(balanced, balanced.max(), rtol=0, atol=1e-12)]
    return float(best[np.abs(best - 0.5).argmin()])


def _predicted(probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    return probabilities.argmax(1) if threshold is None else (probabilities[:, 1] >= threshold).astype(int)


def _recalls(table: pd.DataFrame, threshold: float | None, draws: int) -> dict[str, Interval]:
    cases, (labels, probabilities) = table["case_id"].astype(str).tolist(), arrays(table)
    right = _predicted(probabilities, threshold) == labels

    def recall(klass: int) -> Interval:
        return patient_bootstrap(cases, lambda rows: _mean(right[rows][labels[rows] == klass]), draws=draws)

    return {name: recall(k) for k, name in enumerate(class_names(table))}


def _balanced_accuracy(table: pd.DataFrame, threshold: float, draws: int) -> Interval:
    cases, (labels, probabilities) = table["case_id"].astype(str).tolist(), arrays(table)
    right = _predicted(probabilities, threshold) == labels

    def value(rows: np.ndarray) -> float:
        return (_mean(right[rows][labels[rows] == 0]) + _mean(right[rows][labels[rows] == 1])) / 2

    return patient_bootstrap(cases, value, draws=draws)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
