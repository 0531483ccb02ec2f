"""A linear probe on labelled patches: how good are features, against a histogram of colours, on the same folds."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from scipy import linalg
from sklearn.model_selection import StratifiedGroupKFold

from abbe.data.labelled_images import LabelledImage, expand, find_images, read_images, sources_sha256
from abbe.data.textfiles import read_csv
from abbe.errors import InputError, SlideError, TableError
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
    """uint8 patches [N, H, W, 3], their class [N] and group [N] (what must not be split), and the files' hashes.

    `left_out` says of each image that could not be read why.
    """

    patches: NDArray[np.uint8]
    classes: NDArray[np.str_]
    groups: NDArray[np.str_]
    sha256: dict[str, str]
    left_out: dict[str, str]


def read_patches(path: Path) -> LabelledPatches:
    """Patches of a folder or zip with index.csv (class, file, group, sha256), in its order.

    A file lies in <class>.zip or <class>/; groups are numbered within a class. One that is altered or cannot be decoded
    is left out. InputError for a row with an empty value, and for patches missing, not listed or of several sizes.
    """
    with _index(path) as index:
        table = read_csv(index)
        table.filled(["class", "file", "group", "sha256"])
        order = {(row["class"], row["file"]): place for place, row in enumerate(table.rows)}
        sources = expand([path])
        found, _ = find_images(sources, list(dict.fromkeys(row["class"] for row in table.rows)), index)
        hashes = sources_sha256(sources, index)
    found.sort(key=lambda image: order[image.cls, image.file])
    images, kept, left_out = [], [], {}
    side = _side(found)
    try:
        for image, pixels in read_images(found, side, resize=False):
            if isinstance(pixels, SlideError):
                left_out[image.name] = pixels.reason
                continue
            images.append(pixels)
            kept.append(image)
    except InputError as error:
        raise TableError(f"{str(error).partition(';')[0]}; all patches must be square and of one size") from error
    if not kept:
        raise TableError(
            f"{path}: none of {len(found)} patches can be read; {found[0].name}: {left_out[found[0].name]}"
        )
    classes = np.array([image.cls for image in kept])
    groups = np.array([f"{image.cls}/{image.group}" for image in kept])
    return LabelledPatches(np.stack(images), classes, groups, hashes, left_out)


@contextmanager
def _index(path: Path) -> Iterator[Path]:
    """index.csv of a folder, or of a zip as a file for as long as it is needed; errors name where it lies."""
    missing = TableError(f"{path}: no index.csv in it; give a folder or zip with index.csv and the patches it lists")
    if not zipfile.is_zipfile(path):
        if not (path / "index.csv").is_file():
            raise missing
        yield path / "index.csv"
        return
    with TemporaryDirectory() as folder, zipfile.ZipFile(path) as packed:
        if "index.csv" not in packed.namelist():
            raise missing
        packed.extract("index.csv", folder)
        try:
            yield Path(folder, "index.csv")
        except InputError as error:
            raise TableError(str(error).replace(folder, str(path))) from error


def _side(images: Sequence[LabelledImage]) -> int:
    """Pixels of the side of the first image that can be opened; 0 where none can."""
    for image in images:
        root = image.source if image.source.is_dir() else zipfile.Path(image.source)
        try:
            with (root / image.member).open("rb") as file, Image.open(file) as opened:
                return opened.width
        except (OSError, ValueError, SyntaxError, zipfile.BadZipFile):
            continue
    return 0


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
