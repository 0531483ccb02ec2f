"""Rendered patches compared with real ones: side by side in a montage, and by a linear probe."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold

from abbe.console import progress
from abbe.data.labelled_images import LabelledImage, expand, find_images, sources_sha256
from abbe.errors import InputError
from abbe.phantom.bank import SETTINGS
from abbe.phantom.draw import shuffled
from abbe.phantom.mosaic import index_of, read_patches
from abbe.phantom.render.capture import MCU, captured, through_jpeg
from abbe.phantom.render.tissue import MPP, TISSUE_CLASSES, Stain, site_stain
from abbe.phantom.scores import linear_probe
from abbe.phantom.settings import RealismSettings
from abbe.slides.patch_encoders import create_patch_encoder
from abbe.store import commit

FOLDS = 5
_SHOWN = ("stroma", "gland", "lymphocytes", "necrosis", "tumour_a1", "tumour_a2", "tumour_b2", "tumour_b3")
_GAP = 4  # pixels between the patches of a montage
# The JPEG that every patch goes through, whatever it has been through before, so that blocks tell nothing.
_LAST = Stain(quality=90)

Pixels = NDArray[np.uint8]


def realism(run: RealismSettings) -> dict[str, Any]:
    """Commit the montage and the record; returns the record. InputError if there are too few groups or patches."""
    sources, index = expand(run.patches), index_of(run.patches)
    images, others = find_images(sources, run.classes, index)
    real, read, broken = read_patches(_sampled(run, images), run.patch_size)
    real_groups = [f"{image.cls}/{image.group}" for image in read]
    if len(set(real_groups)) < FOLDS or len(real) < len(_SHOWN):
        raise InputError(
            f"realism: {len(real)} real patches of {len(set(real_groups))} groups are too few; at least {len(_SHOWN)} "
            f"patches of {FOLDS} groups are needed"
        )
    rendered, rendered_groups = _rendered(run)
    real, rendered = ([through_jpeg(patch, _LAST) for patch in patches] for patches in (real, rendered))
    stains = run.sites * SETTINGS
    rendered_row = [
        rendered[(TISSUE_CLASSES.index(name) * stains + place % stains) * run.per_group]
        for place, name in enumerate(_SHOWN)
    ]
    real_row = [real[number] for number in np.linspace(0, len(real) - 1, len(_SHOWN)).round().astype(int)]
    for name, rows in {"phantom": [rendered_row], "phantom-and-real": [rendered_row, real_row]}.items():
        commit.write_bytes(run.out / f"{name}.png", montage(rows), format="picture")
    encode = create_patch_encoder(run.encoder)
    accuracy = probe_accuracy(
        np.concatenate([encode(np.stack(rendered)), encode(np.stack(real))]),
        np.repeat([0, 1], [len(rendered), len(real)]),
        np.array([*rendered_groups, *real_groups]),
        seed=run.seed,
    )
    record = {
        "balanced_accuracy": accuracy,
        "folds": FOLDS,
        "patches": {"rendered": len(rendered), "real": len(real)},
        "groups": {"rendered": len(set(rendered_groups)), "real": len(set(real_groups))},
        "patch_size": run.patch_size,
        "mpp": {"rendered": MPP, "real": None},
        "encoder": run.encoder,
        "seed": run.seed,
        "broken": broken,
        "other_classes": others,
        "sources": sources_sha256(sources, index),
    }
    commit.write_json(run.out / "realism.json", record, format="abbe-realism")
    return record


def probe_accuracy(
    features: NDArray[np.float32], real: NDArray[np.int64], groups: NDArray[np.str_], *, seed: int
) -> float:
    """Balanced accuracy of a linear probe on folds that keep groups whole. features [N, D], real [N], groups [N]."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    predicted = np.empty_like(real)
    for train, test in folds.split(features, real, groups):
        predicted[test] = linear_probe(0.01).fit(features[train], real[train]).predict(features[test])
    return float(balanced_accuracy_score(real, predicted))


def montage(rows: Sequence[Sequence[Pixels]]) -> bytes:
    """A PNG of patches of one size, uint8 [h, w, 3], in rows on white."""
    height, width = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    size = (len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    canvas = np.full(size, 255, np.uint8)
    for row, patches in enumerate(rows):
        for column, patch in enumerate(patches):
            y, x = row * (height + _GAP), column * (width + _GAP)
            canvas[y : y + height, x : x + width] = patch
    data = io.BytesIO()
    Image.fromarray(canvas).save(data, "png", optimize=True)
    return data.getvalue()


def _sampled(run: RealismSettings, images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Up to `per_group` images of each group of each class, at random; the same wherever the images lie."""
    groups: dict[tuple[str, str], list[LabelledImage]] = {}
    for image in images:
        groups.setdefault((image.cls, image.group), []).append(image)
    chosen = []
    for key, group in groups.items():
        of_file = {image.file: image for image in group}  # a class has no two files of one name
        chosen += [of_file[file] for file in shuffled(of_file, run.seed, *key)[: run.per_group]]
    return chosen


def _rendered(run: RealismSettings) -> tuple[list[Pixels], list[str]]:
    """`per_group` patches of every class, site and setting, in that order, and the group of each."""
    rng = np.random.default_rng([run.seed, 17])
    patches, groups = [], []
    with progress("rendering", len(TISSUE_CLASSES)) as bar:
        for cls, name in enumerate(TISSUE_CLASSES):
            for site, setting in itertools.product(range(run.sites), range(SETTINGS)):
                stain = site_stain(site, setting, run.seed)
                for x, y, seed in rng.integers(0, 1 << 20, (run.per_group, 3)).tolist():
                    phase = (x % MCU, y % MCU)
                    patches.append(captured(x, y, run.patch_size, cls, phase=phase, stain=stain, seed=seed))
                    groups.append(f"rendered/{name}/{site}/{setting}")
            bar.advance(bar.task_ids[0])
    return patches, groups
