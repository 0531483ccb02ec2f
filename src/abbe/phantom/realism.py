"""Rendered patches beside real ones, for the eye (a montage) and for a linear probe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from abbe.console import progress
from abbe.data.labelled_images import LabelledImage, expand, find_images, read_images, sources_sha256
from abbe.errors import InputError, SlideError
from abbe.phantom.bank import SETTINGS
from abbe.phantom.draw import shuffled
from abbe.phantom.mosaic import index_of
from abbe.phantom.render.tissue import MPP, TISSUE_CLASSES, render, site_stain
from abbe.phantom.settings import MosaicBankPlan, RealismSettings
from abbe.slides.patch_encoders import create_patch_encoder
from abbe.store import commit

FOLDS = 5
_SHOWN = ("stroma", "gland", "lymphocytes", "necrosis", "tumour_a1", "tumour_a2", "tumour_b2", "tumour_b3")
_GAP = 4
_QUALITY = 90

Pixels = NDArray[np.uint8]


def realism(run: RealismSettings) -> dict[str, Any]:
    """Commit the montage and the record; returns the record. InputError where there are too few groups or patches."""
    if run.per_group < 1 or run.sites < 1:
        raise InputError(f"--per-group and --sites must be at least 1, got {run.per_group} and {run.sites}")
    images, others = _chosen(run)
    real, real_groups, broken = _read(run, images)
    if len(set(real_groups)) < FOLDS or len(real) < len(_SHOWN):
        raise InputError(f"realism: {len(real)} real patches of {len(set(real_groups))} groups are too few")
    rendered, rendered_groups = _rendered(run)
    stains = run.sites * SETTINGS
    painted = [
        rendered[(TISSUE_CLASSES.index(name) * stains + place % stains) * run.per_group]
        for place, name in enumerate(_SHOWN)
    ]
    few = [real[number] for number in np.linspace(0, len(real) - 1, len(_SHOWN)).round().astype(int)]
    for name, rows in {"phantom": [painted], "phantom-and-real": [painted, few]}.items():
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
        "sources": sources_sha256(expand(run.patches), _index(run)),
    }
    commit.write_json(run.out / "realism.json", record, format="abbe-realism")
    return record


def probe_accuracy(
    features: NDArray[np.float32], real: NDArray[np.int64], groups: NDArray[np.str_], *, seed: int
) -> float:
    """Balanced accuracy of a linear probe on folds that keep groups whole. features [N, D], real [N], groups [N]."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    seen = np.empty_like(real)
    for train, test in folds.split(features, real, groups):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.01))
        seen[test] = probe.fit(features[train], real[train]).predict(features[test])
    return float(balanced_accuracy_score(real, seen))


def montage(rows: Sequence[Sequence[Pixels]]) -> bytes:
    """Patches of one size, uint8 [h, w, 3], in rows on white, as a PNG."""
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


def _index(run: RealismSettings) -> Path | None:
    return index_of(MosaicBankPlan(patches=tuple(map(str, run.patches))))


def _chosen(run: RealismSettings) -> tuple[list[LabelledImage], dict[str, int]]:
    """Up to `per_group` images of each group of each class, drawn by seed; how many of other classes there are."""
    images, others = find_images(expand(run.patches), run.classes, _index(run))
    of_group: dict[tuple[str, str], list[LabelledImage]] = {}
    for image in images:
        of_group.setdefault((image.cls, image.group), []).append(image)
    drawn = (shuffled(members, run.seed, *key)[: run.per_group] for key, members in of_group.items())
    return [image for members in drawn for image in members], others


def _read(run: RealismSettings, images: Sequence[LabelledImage]) -> tuple[list[Pixels], list[str], dict[str, str]]:
    """Patches, the group of each, and why the others could not be read."""
    patches, groups, broken = [], [], {}
    for image, found in read_images(images, run.patch_size, resize=False):
        if isinstance(found, SlideError):
            broken[image.name] = found.reason
        else:
            patches.append(_through_jpeg(found))
            groups.append(f"{image.cls}/{image.group}")
    return patches, groups, broken


def _rendered(run: RealismSettings) -> tuple[list[Pixels], list[str]]:
    """`per_group` patches of every class, site and setting, in that order, and the group of each."""
    rng = np.random.default_rng([run.seed, 17])
    patches, groups = [], []
    with progress("rendering", len(TISSUE_CLASSES)) as bar:
        for cls, name in enumerate(TISSUE_CLASSES):
            for site in range(run.sites):
                for setting in range(SETTINGS):
                    stain = site_stain(site, setting, run.seed)
                    for x, y, seed in rng.integers(0, 1 << 20, (run.per_group, 3)).tolist():
                        patch = render(x, y, run.patch_size, run.patch_size, cls, stain=stain, seed=seed)
                        patches.append(_through_jpeg(patch))
                        groups.append(f"rendered/{name}/{site}/{setting}")
            bar.advance(bar.task_ids[0])
    return patches, groups


def _through_jpeg(patch: Pixels) -> Pixels:
    """As a JPEG keeps it: real patches have been through one, and blocks alone must not give rendered ones away."""
    data = io.BytesIO()
    Image.fromarray(patch).save(data, "jpeg", quality=_QUALITY)
    return np.asarray(Image.open(data))
