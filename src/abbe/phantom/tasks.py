"""The three tasks: where the evidence lies on a slide, and the function of the truth map that reads it (the oracle)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from abbe.errors import InputError
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.layout import Layout, needle_layout, regions, smooth, tissue_with_deposit
from abbe.phantom.plan import Patient
from abbe.phantom.render.tissue import GLASS
from abbe.phantom.settings import CohortPlan

_LYMPHOCYTES = 0.2  # of a spatial deposit: with more, small ones have no room for them inside
_RAGGED = 0.4  # borders of a spatial deposit, in patches: a frayed one is all margin
_TRIES = 10
_TOUCHING = 0.25  # of the tissue around a tumour that must be lymphocytes to be called a pattern
_AROUND = np.ones((3, 3), np.int64)

Score = Callable[[NDArray[np.int64], NDArray[np.int64], TissueClasses], float]


def task_layout(
    plan: CohortPlan, kinds: TissueClasses, rng: np.random.Generator, n: int, patient: Patient, necrosis: float
) -> Layout:
    """The layout of one slide of `n` patches. necrosis: its share, for the mixture task."""
    tumour = kinds.tumour(patient.subtype, patient.grade) if patient.grade else None
    if plan.task == "mixture":
        return mixture_layout(rng, n, tumour_class=tumour, deposit=plan.deposit, necrosis=necrosis, kinds=kinds)
    assert tumour is not None
    if plan.task == "spatial":
        return spatial_layout(rng, n, tumour_class=tumour, deposit=plan.deposit, pattern=patient.pattern, kinds=kinds)
    return needle_layout(rng, n, tumour_class=tumour, fraction=plan.fraction, rest=kinds.rest, tumours=kinds.tumours)


def mixture_layout(
    rng: np.random.Generator,
    n: int,
    *,
    tumour_class: int | None,
    deposit: float,
    necrosis: float,
    kinds: TissueClasses = PHANTOM,
) -> Layout:
    """Exactly ``round(necrosis * n)`` patches of necrosis in blotches all over the tissue; the rest is random.

    A tumour, where there is one, takes a random share of up to ``deposit``, and is spared by the necrosis.
    """
    dead = kinds.number("necrosis")
    living = tuple(kind for kind in kinds.rest if kind != dead)
    if not living:
        raise InputError("the mixture task needs a class that is neither tumour nor necrosis")
    size = max(1, round(rng.uniform(0, deposit) * n))
    tissue, tumour = tissue_with_deposit(rng, n, size)
    classes = np.where(tissue, regions(rng, tissue, living), np.uint8(GLASS))
    if tumour_class is not None:
        classes[tumour] = tumour_class
    free = np.flatnonzero(tissue & ~tumour)
    height = smooth(rng, tissue.shape[0], tissue.shape[1], 3.0).ravel()[free]
    classes.ravel()[free[np.argsort(-np.round(height, 9), kind="stable")[: round(necrosis * n)]]] = dead
    return Layout(classes)


def spatial_layout(
    rng: np.random.Generator,
    n: int,
    *,
    tumour_class: int,
    deposit: float,
    pattern: str,
    kinds: TissueClasses = PHANTOM,
) -> Layout:
    """A deposit of ``deposit`` of the patches, a fifth of it lymphocytes: ``inside`` or along its ``margin``.

    The same generator gives both patterns the same deposit, surroundings and counts; only the places of tumour and
    lymphocytes within the deposit differ. Elsewhere there are no lymphocytes. Along the margin they touch other
    tissue, inside they do not (where a slide this small has room for both; it is laid out anew up to ten times).
    """
    if pattern not in ("inside", "margin"):
        raise InputError(f"spatial_layout: pattern must be 'inside' or 'margin', got {pattern!r}")
    lymphocytes = kinds.number("lymphocytes")
    others = tuple(kind for kind in kinds.rest if kind != lymphocytes)
    if not others:
        raise InputError("the spatial task needs a class that is neither tumour nor lymphocytes")
    size = max(1, round(deposit * n))
    count = max(1, round(_LYMPHOCYTES * size))
    for _ in range(_TRIES):
        tissue, blob = tissue_with_deposit(rng, n, size, ragged=_RAGGED)
        # Depth counts from other tissue, not from glass: what lies at the slide's edge is no margin of the tumour.
        depth = ndimage.distance_transform_cdt(~(tissue & ~blob), metric="chessboard")
        deep = int((depth[blob] > 1).sum())
        if min(deep, size - deep) >= count:
            break
    classes = np.where(tissue, regions(rng, tissue, others), np.uint8(GLASS))
    where = np.flatnonzero(blob)
    where = where[np.argsort(depth.ravel()[where] + rng.random(size))]
    deep = max(deep, count)
    within = where[size - deep :][rng.permutation(deep)[:count]]
    classes[blob] = tumour_class
    classes.ravel()[within if pattern == "inside" else where[:count]] = lymphocytes
    return Layout(classes)


def needle_score(classes: NDArray[np.int64], _places: NDArray[np.int64], kinds: TissueClasses) -> float:
    """Patches of subtype b minus patches of subtype a."""
    return float(np.isin(classes, kinds.b).sum() - np.isin(classes, kinds.a).sum())


def mixture_score(classes: NDArray[np.int64], _places: NDArray[np.int64], kinds: TissueClasses) -> float:
    """Share of patches that are necrosis."""
    return float((classes == kinds.number("necrosis")).mean())


def spatial_score(classes: NDArray[np.int64], places: NDArray[np.int64], kinds: TissueClasses) -> float:
    """Share of tumour in the tissue beside lymphocytes (eight neighbours, each as often as it is one); 0 without."""
    grid = _grid(classes, places)
    lymphocytes = grid == kinds.number("lymphocytes")
    beside = ndimage.convolve(lymphocytes.astype(np.int64), _AROUND, mode="constant")
    total = beside[(grid >= 0) & ~lymphocytes].sum()
    return float(beside[np.isin(grid, kinds.tumours)].sum() / total) if total else 0.0


ORACLE: dict[str, Score] = {"needle": needle_score, "mixture": mixture_score, "spatial": spatial_score}
"""classes [N], places [N, 2] as (x, y) in patch units, and what the classes mean → a score of the second label"""


def til_pattern(layout: Layout, kinds: TissueClasses = PHANTOM) -> str:
    """``margin`` where lymphocytes are a quarter or more of the tissue around the tumour, else ``none``.

    For slides on which no pattern was laid out; lymphocytes inside a tumour occur on those only where it was.
    """
    tumour = np.isin(layout.classes, kinds.tumours)
    around = ndimage.binary_dilation(tumour, _AROUND) & ~tumour & layout.tissue
    share = (layout.classes[around] == kinds.number("lymphocytes")).mean() if around.any() else 0.0
    return "margin" if share >= _TOUCHING else "none"


def largest_deposit(layout: Layout, kinds: TissueClasses = PHANTOM) -> int:
    """Patches of the largest connected piece of tumour (neighbours share a side)."""
    pieces, _ = ndimage.label(np.isin(layout.classes, kinds.tumours))
    return int(np.bincount(pieces.ravel())[1:].max(initial=0))


def _grid(classes: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    grid = np.full(tuple(places.max(0)[::-1] + 1), -1, np.int64)
    grid[places[:, 1], places[:, 0]] = classes
    return grid
