"""The three tasks: where the evidence lies on a slide, and the function of the truth map that reads it (the oracle)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from abbe.errors import InputError
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.layout import Layout, regions, smooth, tissue_with_deposit
from abbe.phantom.plan import PlannedSlide
from abbe.phantom.settings import CohortPlan

_LYMPHOCYTES = 0.2  # share of a spatial deposit; with more, small deposits have no room for them inside
_RAGGED = 0.4  # raggedness of a spatial deposit, in patches; a very ragged deposit is all margin
_TRIES = 10  # layouts drawn until a spatial deposit has room inside and along its margin
_TOUCHING = 0.25  # share of the tissue around a tumour that must be lymphocytes to be called a pattern
_NEIGHBOURS = np.ones((3, 3), np.int64)

Score = Callable[[NDArray[np.int64], NDArray[np.int64], TissueClasses], float]


def slide_layout(
    plan: CohortPlan, slide: PlannedSlide, classes: TissueClasses = PHANTOM
) -> tuple[Layout, np.random.Generator]:
    """The layout of a slide of a cohort, and its random generator for further draws."""
    patient = slide.patient
    rng = np.random.default_rng([*patient.seed, slide.index])
    n = int(rng.integers(round(0.75 * plan.patches), round(1.25 * plan.patches) + 1))
    tumour = classes.tumour(patient.subtype, patient.grade) if patient.grade else None
    if plan.task == "mixture":
        shares = {"deposit": plan.deposit, "necrosis": slide.necrosis}
        return mixture_layout(rng, n, tumour_class=tumour, classes=classes, **shares), rng
    assert tumour is not None  # only patients of a mixture cohort may have none
    if plan.task == "needle":
        return needle_layout(rng, n, tumour_class=tumour, fraction=plan.fraction, classes=classes), rng
    pattern, deposit = patient.pattern, plan.deposit
    return spatial_layout(rng, n, tumour_class=tumour, deposit=deposit, pattern=pattern, classes=classes), rng


def needle_layout(
    rng: np.random.Generator,
    n: int,
    *,
    tumour_class: int,
    fraction: float,
    shape: tuple[int, int] | None = None,
    classes: TissueClasses = PHANTOM,
) -> Layout:
    """One connected tumour deposit of ``max(1, round(fraction * n))`` of ``n`` patches in mixed normal tissue.

    shape: (rows, cols) of the raster; by default a little larger than the tissue. Raises InputError if an argument is
    out of range or the raster cannot hold ``n`` patches.
    """
    if n < 1:
        raise InputError(f"needle_layout: n must be at least 1, got {n}")
    if tumour_class not in classes.tumours:
        known = ", ".join(map(str, classes.tumours))
        raise InputError(f"needle_layout: tumour_class must be one of {known}, got {tumour_class}")
    if not 0 < fraction <= 1:
        raise InputError(f"needle_layout: fraction must lie in (0, 1], got {fraction}")
    if shape is not None and (min(shape) < 1 or shape[0] * shape[1] < n):
        raise InputError(f"needle_layout: shape {shape} cannot hold n = {n} patches")
    tissue, deposit = tissue_with_deposit(rng, n, max(1, round(fraction * n)), shape)
    class_map = regions(rng, tissue, classes.rest)
    class_map[deposit] = tumour_class
    return Layout(class_map)


def mixture_layout(
    rng: np.random.Generator,
    n: int,
    *,
    tumour_class: int | None,
    deposit: float,
    necrosis: float,
    classes: TissueClasses = PHANTOM,
) -> Layout:
    """Exactly ``round(necrosis * n)`` patches of necrosis, in blotches all over the tissue; the rest is random.

    A tumour, if there is one, takes a random share of up to ``deposit``; necrosis does not cover it.
    """
    dead = classes.number("necrosis")
    living = tuple(cls for cls in classes.rest if cls != dead)
    if not living:
        raise InputError("the mixture task needs a class that is neither tumour nor necrosis")
    size = max(1, round(rng.uniform(0, deposit) * n))
    tissue, tumour = tissue_with_deposit(rng, n, size)
    class_map = regions(rng, tissue, living)
    if tumour_class is not None:
        class_map[tumour] = tumour_class
    free = np.flatnonzero(tissue & ~tumour)
    height = smooth(rng, tissue.shape[0], tissue.shape[1], 3.0).ravel()[free]
    class_map.ravel()[free[np.argsort(-np.round(height, 9), kind="stable")[: round(necrosis * n)]]] = dead
    return Layout(class_map)


def spatial_layout(
    rng: np.random.Generator,
    n: int,
    *,
    tumour_class: int,
    deposit: float,
    pattern: str,
    classes: TissueClasses = PHANTOM,
) -> Layout:
    """A deposit of ``deposit`` of the patches, a fifth of it lymphocytes: ``inside`` or along its ``margin``.

    With the same generator both patterns have the same deposit, surroundings and counts; only the places of tumour and
    lymphocytes within the deposit differ. There are no lymphocytes elsewhere. Along the margin they touch other
    tissue, inside they do not, if the deposit has room for both; up to ten layouts are drawn to find one that has.
    """
    if pattern not in ("inside", "margin"):
        raise InputError(f"spatial_layout: pattern must be 'inside' or 'margin', got {pattern!r}")
    lymphocytes = classes.number("lymphocytes")
    others = tuple(cls for cls in classes.rest if cls != lymphocytes)
    if not others:
        raise InputError("the spatial task needs a class that is neither tumour nor lymphocytes")
    size = max(1, round(deposit * n))
    count = max(1, round(_LYMPHOCYTES * size))
    for _ in range(_TRIES):
        tissue, blob = tissue_with_deposit(rng, n, size, ragged=_RAGGED)
        # Depth counts from other tissue, not from glass: the edge of the slide is not the margin of the tumour.
        depth = ndimage.distance_transform_cdt(~(tissue & ~blob), metric="chessboard")
        deep = int((depth[blob] > 1).sum())
        if min(deep, size - deep) >= count:
            break
    class_map = regions(rng, tissue, others)
    by_depth = np.flatnonzero(blob)
    by_depth = by_depth[np.argsort(depth.ravel()[by_depth] + rng.random(size))]
    deep = max(deep, count)
    within = by_depth[size - deep :][rng.permutation(deep)[:count]]
    class_map[blob] = tumour_class
    class_map.ravel()[within if pattern == "inside" else by_depth[:count]] = lymphocytes
    return Layout(class_map)


def needle_score(patch_classes: NDArray[np.int64], _places: NDArray[np.int64], classes: TissueClasses) -> float:
    """Patches of subtype b minus patches of subtype a."""
    return float(np.isin(patch_classes, classes.b).sum() - np.isin(patch_classes, classes.a).sum())


def mixture_score(patch_classes: NDArray[np.int64], _places: NDArray[np.int64], classes: TissueClasses) -> float:
    """Share of patches that are necrosis."""
    return float((patch_classes == classes.number("necrosis")).mean())


def spatial_score(patch_classes: NDArray[np.int64], places: NDArray[np.int64], classes: TissueClasses) -> float:
    """Share of tumour among the eight neighbours of lymphocytes, other lymphocytes left out; 0 if there are none."""
    grid = np.full(tuple(places.max(0)[::-1] + 1), -1, np.int64)
    grid[places[:, 1], places[:, 0]] = patch_classes
    lymphocytes = grid == classes.number("lymphocytes")
    beside = ndimage.convolve(lymphocytes.astype(np.int64), _NEIGHBOURS, mode="constant")
    total = beside[(grid >= 0) & ~lymphocytes].sum()
    return float(beside[np.isin(grid, classes.tumours)].sum() / total) if total else 0.0


ORACLE: dict[str, Score] = {"needle": needle_score, "mixture": mixture_score, "spatial": spatial_score}
"""patch_classes [N], places [N, 2] as (x, y) in patch units, classes → a score that rises towards the second label"""


def til_pattern(layout: Layout, classes: TissueClasses = PHANTOM) -> str:
    """``margin`` if lymphocytes are at least a quarter of the tissue around the tumour, otherwise ``none``.

    For slides of the other tasks, where no pattern was laid out and lymphocytes do not lie inside the tumour.
    """
    tumour = np.isin(layout.classes, classes.tumours)
    around = ndimage.binary_dilation(tumour, _NEIGHBOURS) & ~tumour & layout.tissue
    share = (layout.classes[around] == classes.number("lymphocytes")).mean() if around.any() else 0.0
    return "margin" if share >= _TOUCHING else "none"


def largest_deposit(layout: Layout, classes: TissueClasses = PHANTOM) -> int:
    """Patches of the largest connected piece of tumour (neighbours share a side)."""
    pieces, _ = ndimage.label(np.isin(layout.classes, classes.tumours))
    return int(np.bincount(pieces.ravel())[1:].max(initial=0))
