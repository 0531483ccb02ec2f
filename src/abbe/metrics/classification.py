"""Metrics of slide-level classification, from labels and class probabilities."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve; for more than two classes the unweighted mean of one-vs-rest AUROCs.

    labels: [n] int.   probabilities: [n, C], rows sum to 1.   NaN if a class has no slide.
    """
    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes:
        return float("nan")
    if classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))


def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean recall over the classes, predicting the most probable class. NaN if a class has no slide."""
    if len(np.unique(labels)) < probabilities.shape[1]:
        return float("nan")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        return float(balanced_accuracy_score(labels, probabilities.argmax(1)))


def quadratic_kappa(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Cohen's κ with quadratic weights of the most probable class, classes in the order of the columns.

    For graded diagnoses such as ISUP. NaN if labels and predictions together have only one class.
    """
    predicted = probabilities.argmax(1)
    if len(np.unique(np.concatenate([labels, predicted]))) < 2:
        return float("nan")
    classes = np.arange(probabilities.shape[1])
    return float(cohen_kappa_score(labels, predicted, labels=classes, weights="quadratic"))


METRICS = {"auroc": auroc, "balanced_accuracy": balanced_accuracy}
