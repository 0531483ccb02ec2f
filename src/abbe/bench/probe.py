"""A linear probe on labelled patches: how good are features, against a histogram of colours, on the same folds."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from scipy import linalg
from sklearn.model_selection import StratifiedGroupKFold

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


@dataclass(frozen=True)
class LabelledPatches:
    """uint8 patches [N, H, W, 3], their class [N] and group [N] (what must not be split), and the files' hashes."""

    patches: NDArray[np.uint8]
    classes: NDArray[np.str_]
    groups: NDArray[np.str_]
    sha256: dict[str, str]


def read_patches(path: Path) -> LabelledPatches:
    """Patches of a folder or zip with index.csv (class, file, group, sha256).

    A file lies in <class>.zip or <class>/; groups are numbered within a class. TableError for what is missing, altered
    or of another size than the first.
    """
    root: Any = zipfile.Path(path) if zipfile.is_zipfile(path) else path
    index = root / "index.csv"
    if not index.is_file():
        raise TableError(f"{path}: no index.csv in it; give a folder or zip with index.csv and the patches it lists")
    text = index.read_bytes()
    table = pd.read_csv(io.BytesIO(text), dtype=str)
    missing = [name for name in ("class", "file", "group", "sha256") if name not in table]
    if missing or table.empty:
        raise TableError(f"{path}/index.csv: no column {missing[0]!r}" if missing else f"{path}/index.csv has no rows")
    hashes = {"index.csv": hashlib.sha256(text).hexdigest()}
    images = []
    for name, rows in table.groupby("class", sort=False):
        folder = root / str(name)
        packed = path / f"{name}.zip"
        if root is path and packed.is_file():
            hashes[packed.name] = hashlib.sha256(packed.read_bytes()).hexdigest()
            folder = zipfile.Path(packed)
        images += [
            (place, _image(folder / str(rows.at[place, "file"]), str(rows.at[place, "sha256"]))) for place in rows.index
        ]
    images.sort(key=lambda item: int(item[0]))
    sizes = sorted({image.shape for _, image in images})
    if len(sizes) > 1:
        raise TableError(f"{path}: patches of several sizes, {sizes[0]} and {sizes[1]}; all must have one")
    classes = table["class"].to_numpy(str)
    groups = (table["class"] + "/" + table["group"]).to_numpy(str)
    return LabelledPatches(np.stack([image for _, image in images]), classes, groups, hashes)


def _image(file: Any, sha256: str) -> NDArray[np.uint8]:
    if not file.is_file():
        raise TableError(f"{file} is in index.csv, but not there")
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise TableError(f"{file} was altered: its sha256 is {found[:12]}…, index.csv says {sha256[:12]}…")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def colour_histogram(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Square roots of the shares of 8 × 8 × 8 colours, float32 [N, 512] (roots: the stronger probe of the two)."""
    rows = np.empty((len(patches), 512), np.float32)
    for row, patch in zip(rows, patches >> 5, strict=True):
        codes = (patch[..., 0].astype(np.intp) * 8 + patch[..., 1]) * 8 + patch[..., 2]
        row[:] = np.sqrt(np.bincount(codes.ravel(), minlength=512) / codes.size)
    return rows


def probe(
    features: dict[str, NDArray[np.float32]], data: LabelledPatches, repeats: int, bar: Progress
) -> dict[str, dict[str, Any]]:
    """Each task's balanced accuracy for both features (the first against the second), and their difference.

    Standardised, then ridge classification, its penalty chosen from PENALTIES by folds within the training folds.
    Repeated FOLDS-fold cross-validation that keeps groups whole, the same folds for both. Interval: bootstrap over
    groups of how often each patch was right over the repeats; it holds the folds' models as given.
    """
    missing = sorted({name for task in TASKS.values() for name in task} - set(data.classes))
    if missing:
        raise TableError(f"index.csv: no patch of class {missing[0]!r}, which the tasks need")
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
        figures = {**right, "difference": ours - theirs}
        found[task] = {
            "classes": {name: int((labels == name).sum()) for name in classes},
            "groups": {name: len(set(groups[labels == name])) for name in classes},
            **{name: _interval(values, codes, groups) for name, values in figures.items()},
            "repeats": scores,
            "penalties": {name: {f"{p:g}": used.count(p) for p in PENALTIES} for name, used in penalties.items()},
        }
    return found


def _right(rows: np.ndarray, codes: np.ndarray, groups: np.ndarray, seed: int, penalties: list[float]) -> np.ndarray:
    """Whether each patch was told right by the fold it was left out of, 0 or 1 [N]; notes the penalties chosen."""
    right = np.zeros(len(codes))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(rows, codes, groups):
        inner = StratifiedGroupKFold(INNER_FOLDS, shuffle=True, random_state=seed)
        scores = np.zeros(len(PENALTIES))
        for fit, held in inner.split(rows[train], codes[train], groups[train]):
            told = ridge_classes(rows[train[fit]], codes[train[fit]], rows[train[held]], PENALTIES)
            truth = codes[train[held]]
            scores += [_balanced(once == truth, truth, np.arange(len(truth))) for once in told]
        best = PENALTIES[int(np.argmax(scores))]
        penalties.append(best)
        right[test] = ridge_classes(rows[train], codes[train], rows[test], (best,))[0] == codes[test]
    return right


def ridge_classes(
    rows: np.ndarray, codes: np.ndarray, asked: np.ndarray, penalties: Sequence[float]
) -> list[np.ndarray]:
    """Class codes of the rows `asked`, for each penalty: features standardised, one least-squares fit a class (targets
    −1 and 1), the largest wins. Fitted on `rows` [N, D] with `codes` [N] from 0; one Gram matrix serves all penalties.
    """
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread[spread == 0] = 1
    x = (rows - mean) / spread
    targets = np.eye(codes.max() + 1)[codes] * 2 - 1
    centre = targets.mean(axis=0)
    gram, along = x.T @ x, x.T @ (targets - centre)
    told = []
    for penalty in penalties:
        weights = linalg.solve(gram + penalty * np.eye(len(gram)), along, assume_a="pos")
        told.append(np.argmax((asked - mean) / spread @ weights + centre, axis=1))
    return told


def _balanced(values: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> float:
    """Mean over classes (codes from 0) of the mean of `values` over those rows; NaN where a class has none."""
    counts = np.bincount(codes[rows], minlength=codes.max() + 1)
    if not counts.all():
        return float("nan")
    return float((np.bincount(codes[rows], values[rows], len(counts)) / counts).mean())


def _interval(values: np.ndarray, codes: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    found = patient_bootstrap(list(groups), lambda rows: _balanced(values, codes, rows), draws=DRAWS).as_dict()
    return {"groups" if key == "patients" else key: value for key, value in found.items()}
