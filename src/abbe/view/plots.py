"""Plots: how training went, and figures beside each other with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import pandas as pd
from matplotlib.figure import Figure


def training_curves(histories: Mapping[str, pd.DataFrame]) -> bytes:
    """PNG: validation loss of the task by epoch, a line a run. histories: columns epoch, val_task."""
    figure = Figure(figsize=(7, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, history in histories.items():
        axes.plot(history["epoch"], history["val_task"], label=name, linewidth=1.4)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation loss (cross-entropy)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def figures_with_intervals(rows: Sequence[tuple[str, Mapping[str, Any]]], *, label: str, chance: float | None) -> bytes:
    """PNG: one point and 95 % interval a row. rows: (name, {value, low, high})."""
    figure = Figure(figsize=(7, 0.42 * len(rows) + 1.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    for y, (_, row) in enumerate(rows):
        spread = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        axes.errorbar(row["value"], y, xerr=spread, fmt="o", color="C0", capsize=3)
    if chance is not None:
        axes.axvline(chance, color="grey", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    return png(figure)


def evidence_curves(curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], *, label: str) -> bytes:
    """PNG: a figure against the share of evidence, a line a method with its intervals. curves: [(fraction, figure)]."""
    figure = Figure(figsize=(7.5, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        x = [100 * fraction for fraction, _ in points]
        axes.plot(x, [row["value"] for _, row in points], marker="o", markersize=4, label=name, color=f"C{number}")
        if all("low" in row for _, row in points):
            low, high = [row["low"] for _, row in points], [row["high"] for _, row in points]
            axes.fill_between(x, low, high, alpha=0.15, color=f"C{number}")
    axes.set_xscale("log")
    ticks = sorted({100 * fraction for points in curves.values() for fraction, _ in points})
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("evidence: share of the slide's patches")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, the same for the same figure."""
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
