"""What encoders with weights share: importing an extra, the names and versions of models, and errors of the hub."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from abbe.errors import ConfigError


def import_extra(module: str, extra: str) -> Any:
    """Import and return a module. ConfigError names the extra to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ConfigError(
            f'this encoder needs {module}, which is not installed: pip install "abbe[{extra}]"'
        ) from error


def safe_name(family: str, model: str) -> str:
    """A folder name made of letters, digits, dots, dashes and underscores."""
    if model.startswith("local-dir:"):
        model = Path(model.removeprefix("local-dir:")).resolve().name
    model = re.sub(r"^hf[-_]hub:", "", model)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{family}-{model}").strip("-.")


def weights_version(model: torch.nn.Module, settings: dict[str, Any]) -> str:
    """First 12 hexadecimal digits of a SHA-256 over all weights and the settings that change features."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


@contextmanager
def hub_errors(model: str) -> Iterator[None]:
    """Turn errors of the Hugging Face hub into ConfigError with a remedy."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{re.sub(r'^hf[-_]hub:', '', model).partition('@')[0]}"
    access = f"accept its terms on {page}, then run `hf auth login` or set HF_TOKEN"
    try:
        yield
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise ConfigError(
            f"{model} is not in the local cache, and the hub cannot be reached (no network, or HF_HUB_OFFLINE is set); "
            "download it where there is a network, or use a folder: timm:local-dir:PATH"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            raise ConfigError(f"{model} is gated: {access}") from error
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            raise ConfigError(f"{model} does not exist, or is private or gated ({status}): {access}") from error
        raise ConfigError(f"{model}: the hub answered {status}: {error}") from error
