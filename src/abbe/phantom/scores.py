"""What the truth allows (oracle) and what counting patches allows (ceiling); and how hard a bank is for one patch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from abbe.data import SPLITS
from abbe.errors import InputError, StoreError
from abbe.phantom.bank import PatchBank
from abbe.phantom.classes import TissueClasses
from abbe.phantom.tasks import ORACLE


def patch_probe(rows: PatchBank) -> np.ndarray:
    """Class of every bank row as a linear patch classifier sees it, [M] int64; fitted on the train split alone."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))
    train = rows.split == SPLITS.index("train")
    probe.fit(rows.features[train], rows.cls[train])
    return np.asarray(probe.predict(rows.features))


def difficulty(rows: PatchBank) -> dict[str, Any]:
    """How hard the bank is for a single patch: balanced accuracies of linear probes, train split → test split.

    The pair is a2 and b2, or a and b where grades are not told apart.
    """
    train, test = rows.split == SPLITS.index("train"), rows.split == SPLITS.index("test")
    pair = np.isin(rows.cls, [rows.kinds.tumour("a", 2), rows.kinds.tumour("b", 2)])
    name = "probe_a2_b2" if rows.kinds.graded else "probe_a_b"
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.01))
    probe.fit(rows.features[train & pair], rows.cls[train & pair])
    seen = patch_probe(rows)
    found: dict[str, Any] = {
        name: float(balanced_accuracy_score(rows.cls[test & pair], probe.predict(rows.features[test & pair]))),
        f"{name}_patches": {"train": int((train & pair).sum()), "test": int((test & pair).sum())},
        "probe_all_classes": float(balanced_accuracy_score(rows.cls[test], seen[test])),
    }
    if rows.group is not None:
        found[f"{name}_groups"] = {
            "train": len(set(zip(rows.cls[train & pair], rows.group[train & pair], strict=True))),
            "test": len(set(zip(rows.cls[test & pair], rows.group[test & pair], strict=True))),
        }
    return found


def oracle_scores(out: str | Path, slide_ids: Sequence[str]) -> np.ndarray:
    """The task's function (`ORACLE` in `abbe.phantom.tasks`) of each slide's truth, [n]; rises to the second label.

    Raises InputError where the cohort in `out` has no slide of a given id.
    """
    record = _record(out)
    truth = pd.read_parquet(Path(out) / "truth" / "patches.parquet")
    return _scores(out, record, truth, truth["class"].to_numpy(np.int64), slide_ids)


def ceiling_scores(out: str | Path, rows: PatchBank, slide_ids: Sequence[str]) -> np.ndarray:
    """The ceiling's score of each slide, [n]: the oracle's function of each patch's class as the patch probe sees it.

    For the needle: patches seen as subtype b minus patches seen as a. The probe was fitted on the train split, so
    scores of train slides flatter.

    Raises InputError where the cohort in `out` was drawn from a bank of another plan, or has no slide of a given id.
    """
    record = _record(out)
    if record["parameters"]["bank"] != rows.described():
        raise InputError(f"{out}: this cohort was drawn from a bank of another plan ({record['parameters']['bank']})")
    truth = pd.read_parquet(Path(out) / "truth" / "patches.parquet")
    if "bank_row" not in truth:
        raise InputError(f"{out}: a cohort of pixels is drawn from no bank; the ceiling is that of its features")
    return _scores(out, record, truth, patch_probe(rows)[truth["bank_row"].to_numpy()], slide_ids)


def _record(out: str | Path) -> dict[str, Any]:
    path = Path(out) / "cohort.json"
    if not path.is_file():
        raise StoreError(f"{path}: not there; make the cohort first, with abbe cohort phantom or abbe cohort mosaic")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _scores(
    out: str | Path, record: dict[str, Any], truth: pd.DataFrame, classes: np.ndarray, slide_ids: Sequence[str]
) -> np.ndarray:
    kinds = TissueClasses(tuple(record["classes"]), *(tuple(record["kinds"][name]) for name in ("rest", "a", "b")))
    oracle = ORACLE[record["parameters"]["plan"]["task"]]
    places = truth[["x", "y"]].to_numpy(np.int64)
    rows_of = truth.groupby(truth["slide_id"].astype(str), sort=False).indices
    unknown = [slide_id for slide_id in slide_ids if slide_id not in rows_of]
    if unknown:
        raise InputError(f"{out}: no slide {unknown[0]!r} in this cohort")
    return np.array([oracle(classes[rows_of[name]], places[rows_of[name]], kinds) for name in slide_ids], float)
