"""Plots of training histories, and of metrics with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from abbe.view.figure import Figure


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Validation loss of the task by epoch, one line per run. histories: columns epoch, val_task."""
    figure = Figure(figsize=(7, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, history in histories.items():
        axes.plot(history["epoch"], history["val_task"], label=name, linewidth=1.4)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation loss (cross-entropy)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def interval_plot(rows: Mapping[str, Mapping[str, Any]], *, label: str, chance: float | None) -> Figure:
    """One row per metric with its 95 % interval, {"value", "low", "high"}; empty where it is not defined (None)."""
    figure = Figure(figsize=(7, 0.42 * len(rows) + 1.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows.values()):
        if row["value"] is None or row["low"] is None:
            continue
        spread = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        axes.errorbar(row["value"], y, xerr=spread, fmt="o", color="C0", capsize=3)
    if chance is not None:
        axes.axvline(chance, color="grey", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    return figure


def evidence_curves(curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], *, label: str) -> Figure:
    """A metric with its intervals against the share of evidence, one line per method. curves: [(fraction, metric)]."""
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
    return figure
