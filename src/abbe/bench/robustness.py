"""How much a linear probe loses when the patches it reads were changed as scanners and files change them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from scipy import ndimage

from abbe.bench.labelled_patches import LabelledPatches
from abbe.bench.probe import TASKS, fitted, interval
from abbe.slides.patch_encoders import PatchEncoder

Pixels = NDArray[np.uint8]
GAINS = (1.05, 0.97, 1.03)
"""of red, green and blue: the colour shift"""


def jpeg(patch: Pixels, quality: int) -> Pixels:
    """The patch after JPEG with chroma of half the width and height."""
    data = io.BytesIO()
    Image.fromarray(patch).save(data, "jpeg", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(data))


def _levels(values: NDArray[np.floating[Any]]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _enlarged(patch: Pixels, scale: float) -> Pixels:
    """The middle of the patch, enlarged to the size of the patch."""
    height, width = patch.shape[:2]
    x, y = width * (1 - 1 / scale) / 2, height * (1 - 1 / scale) / 2
    box = (x, y, width - x, height - y)
    return np.asarray(Image.fromarray(patch).resize((width, height), Image.Resampling.BICUBIC, box=box))


CHANGES: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "JPEG 90": lambda patch, _: jpeg(patch, 90),
    "JPEG 75": lambda patch, _: jpeg(patch, 75),
    "JPEG 50": lambda patch, _: jpeg(patch, 50),
    "blur 0.7": lambda patch, _: _levels(ndimage.gaussian_filter(patch.astype(np.float32), (0.7, 0.7, 0))),
    "noise 4": lambda patch, rng: _levels(patch + rng.normal(0, 4, patch.shape)),
    "scale 1.1": lambda patch, _: _enlarged(patch, 1.1),
    "colour shift": lambda patch, _: _levels(patch * np.array(GAINS)),
}
"""blur: Gaussian, sigma in pixels.  noise: sd in grey levels.  scale: enlarged by this.  colour shift: gains of RGB"""


def some_of_each_group(groups: NDArray[np.str_], per_group: int) -> NDArray[np.intp]:
    """Numbers of up to `per_group` patches of each group, at random but always the same, in ascending order."""
    order = np.random.default_rng(0).permutation(len(groups))
    kept = [rows[:per_group] for rows in (order[groups[order] == group] for group in np.unique(groups))]
    return np.sort(np.concatenate(kept))


def robustness(
    encode: PatchEncoder, features: NDArray[np.float32], data: LabelledPatches, *, per_group: int, bar: Progress
) -> dict[str, Any]:
    """Balanced accuracy in each task on patches as they are and after each change, and the loss.

    features: [N, D] of the patches as they are. The probe is fitted on them in four of five folds and reads up to
    `per_group` patches of each group of the fifth, changed or not. Intervals resample groups; losses are paired.
    """
    rows = some_of_each_group(data.groups, per_group)
    read = {"unchanged": features[rows]}
    for number, (name, change) in enumerate(CHANGES.items()):
        rng = np.random.default_rng(number)
        read[name] = np.concatenate([encode(change(data.patches[row], rng)[None]) for row in rows])
        bar.advance(bar.task_ids[0])
    found: dict[str, Any] = {}
    for task, classes in TASKS.items():
        mask = np.isin(data.classes, classes)
        codes = np.unique(data.classes[mask], return_inverse=True)[1]
        places = np.flatnonzero(mask)
        of_task = np.isin(rows, places)
        asked = np.searchsorted(places, rows[of_task])  # which patches of the task are read
        right = {name: np.zeros(len(asked)) for name in read}
        for _, test, model in fitted(features[mask].astype(np.float64), codes, data.groups[mask], 0):
            here = np.isin(asked, test)
            for name, values in read.items():
                right[name][here] = model.predict(values[of_task][here].astype(np.float64)) == codes[asked[here]]
        groups = data.groups[mask][asked]
        found[task] = {
            name: {
                "accuracy": interval(values, codes[asked], groups),
                "loss": interval(right["unchanged"] - values, codes[asked], groups),
            }
            for name, values in right.items()
        }
    return {"patches": len(rows), "per_group": per_group, "tasks": found}
