"""How hard a bank and a cohort are: linear probes of single patches, the oracle, and the ceiling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from abbe.data import SPLITS
from abbe.errors import InputError, StoreError
from abbe.phantom.bank import PatchBank
from abbe.phantom.classes import TissueClasses
from abbe.phantom.tasks import ORACLE


def linear_probe(c: float) -> Pipeline:
    """Logistic regression on standardised features. c: inverse of the L2 penalty, as in scikit-learn."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=c))


def train_probe(bank: PatchBank) -> Pipeline:
    """A linear probe of all classes, fitted on the train split of the bank."""
    train = bank.split == SPLITS.index("train")
    return linear_probe(0.1).fit(bank.features[train], bank.cls[train])


def predicted_classes(bank: PatchBank) -> np.ndarray:
    """The class of every bank row, [M] int64, as predicted by a linear probe fitted on the train split."""
    return np.asarray(train_probe(bank).predict(bank.features))


def difficulty(bank: PatchBank) -> dict[str, Any]:
    """How hard single patches of the bank are: balanced accuracies of linear probes, train split → test split.

    Of all classes, and of a pair of tumours: a2 and b2, or a and b if classes have no grades.
    """
    train, test = (bank.split == SPLITS.index(name) for name in ("train", "test"))
    pair = np.isin(bank.cls, [bank.classes.tumour("a", 2), bank.classes.tumour("b", 2)])
    name = "probe_a2_b2" if bank.classes.graded else "probe_a_b"
    probe = linear_probe(0.01).fit(bank.features[train & pair], bank.cls[train & pair])
    found: dict[str, Any] = {
        name: float(balanced_accuracy_score(bank.cls[test & pair], probe.predict(bank.features[test & pair]))),
        f"{name}_patches": {"train": int((train & pair).sum()), "test": int((test & pair).sum())},
        "probe_all_classes": float(balanced_accuracy_score(bank.cls[test], predicted_classes(bank)[test])),
    }
    if bank.group is not None:
        found[f"{name}_groups"] = {
            split: len(set(zip(bank.cls[rows], bank.group[rows], strict=True)))
            for split, rows in {"train": train & pair, "test": test & pair}.items()
        }
    return found


def oracle_scores(out: str | Path, slide_ids: Sequence[str]) -> np.ndarray:
    """The task's function of each slide's truth (`ORACLE` in `abbe.phantom.tasks`), [n]; rises to the second label.

    Raises InputError if the cohort in `out` lacks a slide.
    """
    record, truth = _read_cohort(out)
    return _scores(out, record, truth, truth["class"].to_numpy(np.int64), slide_ids)


def ceiling_scores(out: str | Path, bank: PatchBank, slide_ids: Sequence[str]) -> np.ndarray:
    """The oracle's function of each slide's predicted patch classes, [n]: the ceiling.

    For the needle: patches predicted as subtype b minus patches predicted as a. The probe is fitted on the train
    split, so scores of train slides are too good.

    Raises InputError if the cohort in `out` was drawn from a bank of another plan, or lacks a slide.
    """
    record, truth = _read_cohort(out)
    if record["parameters"]["bank"] != bank.record():
        raise InputError(f"{out}: this cohort was drawn from a bank of another plan ({record['parameters']['bank']})")
    if "bank_row" not in truth:
        raise InputError(f"{out}: a pixel-level cohort has no ceiling; use the feature-level cohort of the same plan")
    return _scores(out, record, truth, predicted_classes(bank)[truth["bank_row"].to_numpy()], slide_ids)


def _read_cohort(out: str | Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """What cohort.json holds, and the table of patches."""
    path = Path(out) / "cohort.json"
    if not path.is_file():
        raise StoreError(f"{path}: not found; make the cohort first, with abbe cohort phantom or abbe cohort mosaic")
    truth = pd.read_parquet(Path(out) / "truth" / "patches.parquet")
    return json.loads(path.read_text(encoding="utf-8")), truth


def _scores(
    out: str | Path, record: dict[str, Any], truth: pd.DataFrame, patch_classes: np.ndarray, slide_ids: Sequence[str]
) -> np.ndarray:
    classes = TissueClasses(tuple(record["classes"]), *(tuple(record["kinds"][name]) for name in ("rest", "a", "b")))
    oracle = ORACLE[record["parameters"]["plan"]["task"]]
    places = truth[["x", "y"]].to_numpy(np.int64)
    rows_of = truth.groupby(truth["slide_id"].astype(str), sort=False).indices
    unknown = [slide_id for slide_id in slide_ids if slide_id not in rows_of]
    if unknown:
        raise InputError(f"{out}: no slide {unknown[0]!r} in this cohort")
    return np.array([oracle(patch_classes[rows_of[name]], places[rows_of[name]], classes) for name in slide_ids], float)
