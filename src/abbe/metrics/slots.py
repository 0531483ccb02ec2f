"""How slots are used: their shares of patches, what these patches are, and what the prediction was read from.

Shares are measured in three ways that differ: by each patch's main slot (top-1), by all slots among its routes (top-2
in TC-SSA), and by mass. All are pooled over the slides of a sample, so that a bootstrap can resample slides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

OTHER, EVIDENCE, ARTEFACT = range(3)
_IN_USE = 0.01  # smallest share of patches of a slot that counts as in use


@dataclass(frozen=True, eq=False)
class SlotTable:
    """Slot usage of S slides, K slots and 3 kinds of patches (OTHER, EVIDENCE, ARTEFACT).

    best [S, 3, K]: patches by kind and main slot.   member [S, K]: patches with the slot among their routes.
    mass [S, K]: sum of weights.   read [S, 3]: share of the pooled vector that came through each kind.
    """

    best: np.ndarray
    member: np.ndarray
    mass: np.ndarray
    read: np.ndarray


def slide_slots(
    index: np.ndarray, weight: np.ndarray, contribution: np.ndarray, kind: np.ndarray, slots: int
) -> SlotTable:
    """The table of one slide. index [N, R] (−1 dropped), weight [N, R], contribution [N], kind [N] (OTHER, …)."""
    kept = index >= 0
    main = np.where(kept, weight, -1.0).argmax(1)
    first = index[np.arange(len(index)), main]
    best = np.zeros((3, slots))
    np.add.at(best, (kind[first >= 0], first[first >= 0]), 1)
    member = np.bincount(index[kept], minlength=slots).astype(float)
    mass = np.bincount(index[kept], weights=weight[kept], minlength=slots)
    read = np.bincount(kind, weights=contribution, minlength=3)
    return SlotTable(best[None], member[None], mass[None], read[None])


def joined(slides: Sequence[SlotTable]) -> SlotTable:
    """Several tables, concatenated over slides."""
    return SlotTable(
        *(np.concatenate([getattr(s, name) for s in slides]) for name in ("best", "member", "mass", "read"))
    )


def top1_share(table: SlotTable, rows: np.ndarray) -> float:
    """Share of all patches in the slot that is the main slot of most patches."""
    by_slot = table.best[rows].sum((0, 1))
    return float(by_slot.max() / by_slot.sum())


def top1_share_of_a_slide(table: SlotTable, rows: np.ndarray) -> float:
    """The same within each slide, averaged over slides."""
    by_slide = table.best[rows].sum(1)
    return float((by_slide.max(1) / by_slide.sum(1)).mean())


def top2_membership(table: SlotTable, rows: np.ndarray) -> float:
    """Largest share of all patches that have one slot among their routes."""
    return float(table.member[rows].sum(0).max() / table.best[rows].sum())


def mass_share(table: SlotTable, rows: np.ndarray) -> float:
    """Share of the total mass in the heaviest slot."""
    by_slot = table.mass[rows].sum(0)
    return float(by_slot.max() / by_slot.sum())


def dead_slots(table: SlotTable, rows: np.ndarray) -> float:
    """Number of slots to which no patch of any slide was routed."""
    return float((table.member[rows].sum(0) == 0).sum())


def evidence_purity(table: SlotTable, rows: np.ndarray) -> float:
    """Mean over evidence patches of the share of evidence in their main slot: 1 if pure, f if evenly mixed."""
    kinds = table.best[rows].sum(0)
    evidence, everything = kinds[EVIDENCE], kinds.sum(0)
    return float((evidence * evidence / np.maximum(everything, 1)).sum() / evidence.sum())


def artefact_slots(table: SlotTable, rows: np.ndarray) -> float:
    """Number of slots with at least 1 % of all patches, most of them artefacts."""
    kinds = table.best[rows].sum(0)
    everything = kinds.sum(0)
    used = everything >= _IN_USE * everything.sum()
    return float((used & (kinds[ARTEFACT] > 0.5 * everything)).sum())


def read_from_evidence(table: SlotTable, rows: np.ndarray) -> float:
    """Share of the pooled vector that came through evidence patches, averaged over slides."""
    return float(table.read[rows, EVIDENCE].mean())


def read_from_artefacts(table: SlotTable, rows: np.ndarray) -> float:
    """Share of the pooled vector that came through artefacts, averaged over slides."""
    return float(table.read[rows, ARTEFACT].mean())


USAGE: dict[str, Callable[[SlotTable, np.ndarray], float]] = {
    function.__name__: function
    for function in (
        top1_share,
        top1_share_of_a_slide,
        top2_membership,
        mass_share,
        dead_slots,
        evidence_purity,
        artefact_slots,
        read_from_evidence,
        read_from_artefacts,
    )
}
