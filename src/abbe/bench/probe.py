"""A linear probe on labelled patches: how good features are beside a colour histogram, on the same folds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from abbe.bench.labelled_patches import LabelledPatches
from abbe.errors import TableError
from abbe.metrics.bootstrap import patient_bootstrap

TASKS = {
    "lung, 3 classes": ("lung_aca", "lung_n", "lung_scc"),
    "lung, adenocarcinoma or squamous": ("lung_aca", "lung_scc"),
    "colon, adenocarcinoma or normal": ("colon_aca", "colon_n"),
}
FOLDS = 5
INNER_FOLDS = 4
PENALTIES = (10.0, 100.0, 1000.0, 10000.0)
DRAWS = 2000


def colour_histogram(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Square roots of the shares of 8 × 8 × 8 colours, float32 [N, 512]. Roots are a better probe than shares."""
    rows = np.empty((len(patches), 512), np.float32)
    for row, patch in zip(rows, patches >> 5, strict=True):
        codes = (patch[..., 0].astype(np.intp) * 8 + patch[..., 1]) * 8 + patch[..., 2]
        row[:] = np.sqrt(np.bincount(codes.ravel(), minlength=512) / codes.size)
    return rows


def probe(
    features: dict[str, NDArray[np.float32]], data: LabelledPatches, repeats: int, bar: Progress
) -> dict[str, dict[str, Any]]:
    """Balanced accuracy of both features in each task, and the first's minus the second's.

    features: {name: [N, D]}, two of them. Standardised, then ridge classification, its penalty chosen from PENALTIES by
    cross-validation within the training folds. FOLDS-fold cross-validation that keeps groups whole, `repeats` times,
    the same folds for both. Intervals resample groups, given the share of repeats in which each patch was correct.
    Raises TableError if a class of a task has no patch.
    """
    missing = sorted({name for task in TASKS.values() for name in task} - set(data.classes))
    if missing:
        raise TableError(f"index.csv: no patch of class {missing[0]!r}, which a task needs")
    found = {}
    for task, classes in TASKS.items():
        mask = np.isin(data.classes, classes)
        labels, groups = data.classes[mask], data.groups[mask]
        codes = np.unique(labels, return_inverse=True)[1]
        right = {name: np.zeros(len(labels)) for name in features}
        penalties: dict[str, list[float]] = {name: [] for name in features}
        scores: dict[str, list[float]] = {name: [] for name in features}
        for seed in range(repeats):
            for name, rows in features.items():
                once = _right(rows[mask].astype(np.float64), codes, groups, seed, penalties[name])
                right[name] += once / repeats
                scores[name].append(_balanced(once, codes, np.arange(len(codes))))
                bar.advance(bar.task_ids[0])
        ours, theirs = right.values()
        shares = {**right, "difference": ours - theirs}
        found[task] = {
            "classes": {name: int((labels == name).sum()) for name in classes},
            "groups": {name: len(set(groups[labels == name])) for name in classes},
            **{name: interval(values, codes, groups) for name, values in shares.items()},
            "repeats": scores,
            "penalties": {name: {f"{p:g}": used.count(p) for p in PENALTIES} for name, used in penalties.items()},
        }
    return found


def fitted(
    rows: np.ndarray, codes: np.ndarray, groups: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, GridSearchCV]]:
    """Training rows, held-out rows and the probe of each fold, its penalty chosen within the training rows."""
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(rows, codes, groups):
        search = GridSearchCV(
            make_pipeline(StandardScaler(), RidgeClassifier()),
            {"ridgeclassifier__alpha": PENALTIES},
            scoring="balanced_accuracy",
            cv=StratifiedGroupKFold(INNER_FOLDS, shuffle=True, random_state=seed),
        )
        yield train, test, search.fit(rows[train], codes[train], groups=groups[train])


def _right(rows: np.ndarray, codes: np.ndarray, groups: np.ndarray, seed: int, penalties: list[float]) -> np.ndarray:
    """[N]: 1 where a patch was classified correctly by the fold that left it out, else 0. Appends chosen penalties."""
    right = np.zeros(len(codes))
    for _, test, search in fitted(rows, codes, groups, seed):
        penalties.append(search.best_params_["ridgeclassifier__alpha"])
        right[test] = search.predict(rows[test]) == codes[test]
    return right


def _balanced(values: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> float:
    """Mean over classes (codes from 0) of the mean of `values[rows]`; NaN if a class has no row."""
    counts = np.bincount(codes[rows], minlength=codes.max() + 1)
    if not counts.all():
        return float("nan")
    return float((np.bincount(codes[rows], values[rows], len(counts)) / counts).mean())


def interval(values: np.ndarray, codes: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Mean over classes of the mean of `values` [N], with an interval that resamples groups."""
    found = patient_bootstrap(list(groups), lambda rows: _balanced(values, codes, rows), draws=DRAWS).as_dict()
    return {"groups" if key == "patients" else key: value for key, value in found.items()}
