"""Models on disk and on the hub: a folder of config.json, model.safetensors and README.md. No pickle anywhere.

A trained model also has training.json, see `abbe.models.record`.

A model is an `nn.Module` with a `kind` and a `config`, the dataclass it is built from.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any, Protocol

import safetensors
from safetensors.torch import load_file, save_file

from abbe.config import from_dict
from abbe.errors import CheckpointError, ConfigError
from abbe.models.record import TRAINING, TrainingRecord, read_record, write_record
from abbe.store import commit
from abbe.version import __version__

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT, VERSION = "abbe-model", 2
KINDS = {"classifier": "abbe.models.classifier:Classifier"}
"""model classes by kind; each has a `Config`, the dataclass it is made from, with `since` for older formats"""


class Model(Protocol):
    """What can be saved and loaded."""

    kind: str
    config: Any
    record: TrainingRecord | None

    def state_dict(self) -> dict[str, Any]:
        """Weights by name."""


def save_pretrained(model: Model, folder: str | Path, *, card: str) -> None:
    """Commit a model folder. card: the README in Markdown: training data, results."""
    folder = Path(folder)
    with commit.commit(folder / WEIGHTS, format=FORMAT, version=VERSION) as temporary:
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(state, temporary, metadata={"format": "pt"})  # one key: several come in random order
    commit.write_text(folder / CARD, card, format="model-card")
    if model.record is not None:
        write_record(folder, model.record)
    # The configuration is written last: a folder that has one is complete.
    commit.write_json(folder / CONFIG, describe(model), format=FORMAT, version=VERSION)


def describe(model: Model) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "model_type": f"abbe-{model.kind}",
        "format_version": VERSION,
        "abbe_version": __version__,
        **dataclasses.asdict(model.config),
    }


def load(name: str | Path, *, revision: str | None = None) -> Any:
    """The model in a local folder, or on the hub under this id, in eval mode on the CPU.

    Raises CheckpointError naming the file that is missing, altered or of another kind.
    """
    folder = _folder(name, revision)
    cls, config = _read_config(folder / CONFIG)
    model = cls(config)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{weights}: missing; a model folder holds {CONFIG} and {WEIGHTS}")
    # Folders from elsewhere have no sidecar; one of ours that has changed since is refused.
    if commit.read_sidecar(weights) is not None and not commit.is_done(weights):
        raise CheckpointError(
            f"{weights}: the file has changed since it was written (its hash is in {WEIGHTS}{commit.SIDECAR})"
        )
    try:
        missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{weights}: cannot be loaded into this model: {error}") from error
    if missing or unexpected:
        raise CheckpointError(f"{weights}: does not match {CONFIG}: missing {missing}, unexpected {unexpected}")
    model.record = read_record(folder)
    return model.eval()


def weights_sha256(name: str | Path) -> str:
    """SHA-256 of a model's weights."""
    folder = _folder(name)
    _read_config(folder / CONFIG)  # names what is wrong with a folder that is not a model
    return commit.file_sha256(folder / WEIGHTS)


def _folder(name: str | Path, revision: str | None = None) -> Path:
    if not str(name).strip():
        raise CheckpointError("the model name is empty; give a folder or a hub id")
    folder = Path(name)
    return folder if folder.is_dir() else _download(str(name), revision)


def _read_config(path: Path) -> tuple[Any, Any]:
    """(model class, its configuration)."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; a model folder holds {CONFIG} and {WEIGHTS}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    kind = values.pop("model_type", None)
    if kind is None and (path.parent / "model" / CONFIG).is_file():
        raise CheckpointError(f"{path.parent}: this is a run; its model is {path.parent / 'model'}")
    if kind not in {f"abbe-{name}" for name in KINDS}:
        known = ", ".join(f"'abbe-{name}'" for name in KINDS)
        raise CheckpointError(f"{path}: model_type is {kind!r}; this version of Abbe loads {known}")
    version = values.pop("format_version", None)
    if version not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{path}: format_version is {version!r}; this version of Abbe reads 1 to {VERSION}; update Abbe, or "
            "save the model again"
        )
    values.pop("abbe_version", None)
    module, _, name = KINDS[kind.removeprefix("abbe-")].partition(":")
    cls = getattr(importlib.import_module(module), name)
    for newer in range(version + 1, VERSION + 1):
        values = {**cls.Config.since.get(newer, {}), **values}
    try:
        return cls, from_dict(cls.Config, values, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD, TRAINING]))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{name}: not a folder, and cannot be downloaded from the hub ({error})") from error
