"""Checkpoints for exact resume, as safetensors and JSON, without pickle.

<folder>/state.safetensors   weights, optimiser moments, generator states, best weights so far
<folder>/state.json          epoch, schedule, optimiser groups, history, and the hash of state.safetensors
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from abbe.errors import CheckpointError
from abbe.store import commit
from abbe.store.resume import check_unchanged

TENSORS, VALUES = "state.safetensors", "state.json"
FORMAT, VERSION = "abbe-checkpoint", 2


def save(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Replace the previous checkpoint. Tensors are written first, because the values contain their hash."""
    with commit.commit(folder / TENSORS, format=FORMAT, version=VERSION) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    sidecar = commit.read_sidecar(folder / TENSORS)
    assert sidecar is not None
    commit.write_json(folder / VALUES, {**values, "tensors_sha256": sidecar["sha256"]}, format=FORMAT, version=VERSION)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, values) of the checkpoint in `folder`, or None if there is none.

    Raises CheckpointError if a file is damaged, missing, or of another version.
    """
    if not (folder / VALUES).is_file():
        return None
    for name in (TENSORS, VALUES):
        found = commit.state(folder / name)
        if found != "done":
            raise CheckpointError(f"{folder / name}: {found}; remove the folder {folder} to start this run again")
        version = (commit.read_sidecar(folder / name) or {}).get("version")
        if version != VERSION:
            raise CheckpointError(
                f"{folder / name}: format version {version}, "
                f"this version of Abbe reads {VERSION}; use --no-resume to start again"
            )
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    if values.pop("tensors_sha256") != commit.file_sha256(folder / TENSORS):
        raise CheckpointError(
            f"{folder}: {VALUES} and {TENSORS} are from different epochs; remove the folder to start again"
        )
    return load_file(folder / TENSORS), values


def remove(folder: Path) -> None:
    """Remove a checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)


def check_recipe(folder: Path, old: dict[str, Any], new: Any) -> None:
    """Raise CheckpointError if the recipe changed. Epochs may change, except with the cosine schedule."""
    remedy = "use the same settings, another folder, or --no-resume"
    free = ("epochs", "checkpoint_every") if new.schedule != "cosine" else ("checkpoint_every",)
    check_unchanged(folder, old, vars(new), remedy=remedy, ignore=free, error=CheckpointError)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state_dict of an optimiser as (tensors named "optimizer/<parameter>/<name>", plain values)."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{parameter}/{name}"] = value
            else:
                scalars.setdefault(str(parameter), {})[name] = value
    return tensors, {"groups": state["param_groups"], "scalars": scalars}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Load the state returned by `optimizer_state`."""
    state: dict[int, dict[str, Any]] = {int(key): dict(value) for key, value in values["scalars"].items()}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, parameter, name = key.split("/", 2)
            state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["groups"]})
