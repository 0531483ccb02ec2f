"""Checkpoints for exact resume, in safetensors and JSON. No pickle.

<folder>/epoch-000005/state.safetensors   weights, optimiser moments, generator states, best weights so far
<folder>/epoch-000005/state.json          epoch, schedule, optimiser groups, history, the hash of state.safetensors

A checkpoint gets a folder of its own. The previous one is removed only once the new one has been verified, so a
run that is stopped at any moment has a whole checkpoint, if it ever had one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from abbe.errors import CheckpointError, StoreError
from abbe.store import commit
from abbe.store.resume import check_unchanged

TENSORS, VALUES = "state.safetensors", "state.json"
FORMAT, VERSION = "abbe-checkpoint", 2


def save(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Commit a checkpoint of `values["epoch"]`, verify it, then remove the previous ones."""
    place = folder / f"epoch-{values['epoch']:06d}"
    with commit.commit(place / TENSORS, format=FORMAT, version=VERSION) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    sidecar = commit.read_sidecar(place / TENSORS)
    assert sidecar is not None
    commit.write_json(place / VALUES, {**values, "tensors_sha256": sidecar["sha256"]}, format=FORMAT, version=VERSION)
    for name in (TENSORS, VALUES):
        if not commit.is_done(place / name):
            raise StoreError(f"{place / name}: the file read back differs from what was written; check the disk")
    for other in _places(folder):
        if other != place:
            shutil.rmtree(other)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, values) of the newest whole checkpoint in `folder`, or None if there is none.

    One that a stopped run left unfinished is skipped. Raises CheckpointError for one that was whole and is damaged
    now, and for one of another version of Abbe.
    """
    if (folder / VALUES).is_file():
        raise CheckpointError(f"{folder}: a checkpoint of an earlier version of Abbe; --no-resume starts again")
    for place in reversed(_places(folder)):
        if commit.state(place / VALUES) in ("missing", "unsigned"):
            continue  # values are written last: the run was stopped while it wrote this one
        for name in (TENSORS, VALUES):
            found = commit.state(place / name)
            if found != "done":
                raise CheckpointError(f"{place / name}: {found}; remove the folder {folder} to start this run again")
            version = (commit.read_sidecar(place / name) or {}).get("version")
            if version != VERSION:
                raise CheckpointError(f"{place / name}: version {version} is not {VERSION}; --no-resume starts again")
        values = json.loads((place / VALUES).read_text(encoding="utf-8"))
        if values.pop("tensors_sha256") != commit.file_sha256(place / TENSORS):
            raise CheckpointError(f"{place}: {VALUES} and {TENSORS} do not belong together; remove the folder {folder}")
        return load_file(place / TENSORS), values
    return None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds checkpoints."""
    return bool(_places(folder)) or (folder / VALUES).is_file()


def remove(folder: Path) -> None:
    """Remove all checkpoints of a run."""
    shutil.rmtree(folder, ignore_errors=True)


def _places(folder: Path) -> list[Path]:
    """Folders of checkpoints, oldest first."""
    return sorted(path for path in folder.glob("epoch-*") if path.is_dir())


def check_recipe(folder: Path, old: dict[str, Any], new: Any) -> None:
    """Raise CheckpointError if a checkpoint was made with another recipe; the number of epochs may differ."""
    remedy = "use the same settings, another folder, or --no-resume"
    free = ("epochs", "checkpoint_every") if new.schedule != "cosine" else ("checkpoint_every",)
    check_unchanged(folder, old, vars(new), remedy=remedy, ignore=free, error=CheckpointError)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state_dict as (tensors named "optimizer/<parameter>/<name>", plain values)."""
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
    """Load what `optimizer_state` returned."""
    state: dict[int, dict[str, Any]] = {int(key): dict(value) for key, value in values["scalars"].items()}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, parameter, name = key.split("/", 2)
            state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["groups"]})
