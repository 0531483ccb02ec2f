"""Inspect feature files of any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from abbe.errors import BagError
from abbe.inspection.finding import Finding, InspectSettings, signed
from abbe.store.bags import layout_of, peek_bag, read_bag, read_kind
from abbe.store.commit import printable
from abbe.store.detect import is_patches
from abbe.store.kind import Kind
from abbe.types import Bag


def bag(path: Path, run: InspectSettings) -> Finding:
    """Read a bag with all checks; if it is refused, report the facts that can still be read."""
    whole, said = signed(path) if path.is_file() else ({}, [])
    try:
        if is_patches(path):
            return _patches(path, whole, said)
        layout = layout_of(path)
        found = read_bag(
            path,
            patch_size_level0=run.patch_size_level0,
            stride_level0=run.stride_level0,
            mpp=run.override_mpp,
            encoder=run.encoder,
        )
    except BagError as error:
        return Finding(
            printable(path), "feature file", _basic_facts(path) | whole, [printable(str(error)), *said], readable=False
        )
    return Finding(
        printable(path),
        "feature file",
        {"layout": layout} | _facts(found, read_kind(path)) | whole,
        _problems(found) + said,
    )


def _patches(path: Path, facts: dict[str, Any], problems: list[str]) -> Finding:
    """Inspect an h5 file of patch coordinates, as written by TRIDENT and CLAM."""
    with h5py.File(path, "r") as file:
        coords = file["coords"]
        said = {name: value for name, value in coords.attrs.items() if np.ndim(value) == 0}
        facts = {"patches": len(coords)} | {name: _scalar(value) for name, value in said.items()} | facts
    return Finding(printable(path), "patches without features", facts, problems)


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _basic_facts(path: Path) -> dict[str, Any]:
    try:
        patches, width, encoder = peek_bag(path)
    except BagError:
        return {}
    return {"patches": patches, "width": width, "encoder": encoder}


def _facts(found: Bag, kind: Kind) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "patches": len(found),
        "width": found.features.shape[1],
        "type": str(found.features.dtype).removeprefix("torch."),
        "encoder": found.encoder,
        "kind": str(kind),
        "patch size, level-0 pixels": found.patch_size_level0,
        "step, level-0 pixels": found.stride_level0,
        "mpp at level 0": found.mpp,
        "slide size, level-0 pixels": found.level0_size,
    }
    if found.coords is not None and len(found):
        low, high = found.coords.min(0).values.tolist(), found.coords.max(0).values.tolist()
        facts["corners from, to"] = f"({low[0]:g}, {low[1]:g}), ({high[0]:g}, {high[1]:g})"
    return facts


def _problems(found: Bag) -> list[str]:
    problems = []
    if not len(found):
        problems.append("the slide has no patches; train with --allow-missing to skip it")
    if found.coords is None:
        problems.append("no coordinates; maps cannot be drawn, and methods that need positions refuse this file")
    if found.encoder is None:
        problems.append("the patch encoder is not stated; a mismatch with other features cannot be detected")
    if found.coords is not None and found.mpp is None:
        problems.append("the mpp is not stated; pictures have no scale bar unless you set --override-mpp")
    filled = found.features[(found.features != 0).any(1)]
    zeros, repeats = len(found) - len(filled), len(filled) - len(torch.unique(filled, dim=0))
    if zeros:
        problems.append(f"{zeros} patches contain only zeros (padding or failed patches); remove them")
    if repeats:
        problems.append(
            f"{repeats} patches have the same features as another patch; check whether they were encoded twice"
        )
    return problems
