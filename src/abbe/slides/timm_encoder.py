"""`timm:MODEL`: any image model of timm, from timm itself, the Hugging Face hub or a folder, as a patch encoder."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abbe.errors import ConfigError, nearest
from abbe.slides.timm_models import CLASS_AND_MEAN, Special, special

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TimmEncoder:
    """uint8 [B, H, W, 3] (RGB) → float32 [B, D]; resized, cropped and normalised as the model was evaluated.

    model       a timm model ("vit_small_patch16_224"), a hub repository ("hf-hub:MahmoodLab/UNI", "@revision" after it
                where one is wanted) or a folder with config.json and weights ("local-dir:models/mine")
    device      and precision: see `create_patch_encoder`

    Any patch size is taken, and made into `input_size` by the model's own transform. Safe to share between threads.
    Raises ConfigError where the model, the extra, the device or the precision cannot be had.
    """

    patch_size: int | None = None

    def __init__(self, model: str, *, device: str = "auto", precision: str = "auto") -> None:
        import_extra("timm", "encoders")
        import_extra("torchvision", "encoders")
        self.name = safe_name("timm", model)
        self.device, self.dtype = placed(device, precision)
        known = special(model)
        self._model = _load(model, known).eval().requires_grad_(requires_grad=False)
        self._pool = known.pool
        data = {**_data_config(self._model), **known.data}
        self.input_size: tuple[int, int] = tuple(data["input_size"][1:])
        self._geometry, self._normalise = _transform(data)
        settings = {key: str(data[key]) for key in sorted(data)} | {"pool": known.pool}
        self.version: int | str = weights_version(self._model, settings)
        self._model.to(self.device)
        row = self(np.zeros((1, *self.input_size, 3), np.uint8))
        self.width = row.shape[1]

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features float32 [B, D] of patches uint8 [B, H, W, 3]. InputError for another shape or type."""
        images = to_images(self.name, patches).to(self.device)
        if not len(images):
            return np.zeros((0, self.width), np.float32)
        with torch.inference_mode(), half_precision(self.device, self.dtype):
            # Resized as bytes, like the images the models were made with: no overshoot beyond black and white.
            rows = self._rows(self._normalise(self._geometry(images).float() / 255))
        if rows.ndim != 2:
            raise ConfigError(
                f"{self.name}: the model gives shape {tuple(rows.shape)}, not one row a patch; "
                "it has no pooling that is known here"
            )
        return rows.float().cpu().numpy()

    def _rows(self, images: torch.Tensor) -> torch.Tensor:
        if self._pool != CLASS_AND_MEAN:
            return self._model(images)
        tokens = self._model.forward_features(images)  # type: ignore[operator]
        prefix: int = self._model.num_prefix_tokens  # type: ignore[assignment]
        return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)


def import_extra(module: str, extra: str) -> Any:
    """The module. ConfigError says which extra brings it where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ConfigError(
            f'this encoder needs {module}, which is not installed: pip install "abbe[{extra}]"'
        ) from error


def placed(device: str, precision: str) -> tuple[torch.device, torch.dtype]:
    """The device and the number format that the two options mean here. ConfigError for what is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        at = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"--device is {device!r}; it is auto, cpu, cuda or cuda:1") from error
    if at.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {device!r}; it is auto, cpu, cuda or cuda:1")
    if at.type == "cuda" and (at.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device is {device!r}; {torch.cuda.device_count()} CUDA devices are there; use cpu or auto"
        )
    if precision == "auto":
        return at, torch.float16 if at.type == "cuda" else torch.float32
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision is {precision!r}. {nearest(precision, ('auto', *PRECISIONS))}")
    if at.type == "cpu" and precision == "float16":
        raise ConfigError("--precision is float16 on a CPU, which computes it slower; use float32 or bfloat16")
    return at, PRECISIONS[precision]


def half_precision(device: torch.device, dtype: torch.dtype) -> Any:
    """Products in `dtype`; sums that need it stay in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def to_images(name: str, patches: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, 3, H, W] of patches uint8 [B, H, W, 3]. ConfigError (an InputError) for another shape or type."""
    patches = np.ascontiguousarray(patches)
    if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[3] != 3:
        raise ConfigError(f"{name}: patches are {patches.dtype} {patches.shape}, and must be uint8 [B, H, W, 3]")
    # torch warns about arrays it may not write to; nothing here writes.
    return torch.tensor(patches).permute(0, 3, 1, 2)


def safe_name(family: str, model: str) -> str:
    """A name for a folder: letters, digits, dots, dashes and underscores."""
    if model.startswith("local-dir:"):
        model = Path(model.removeprefix("local-dir:")).resolve().name
    model = re.sub(r"^hf[-_]hub:", "", model)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{family}-{model}").strip("-.")


def weights_version(model: torch.nn.Module, settings: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of a hash over every weight and the settings: other features, another version."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


@contextmanager
def hub_errors(model: str) -> Iterator[None]:
    """What the Hugging Face hub refuses, as ConfigError with the remedy."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{re.sub(r'^hf[-_]hub:', '', model).partition('@')[0]}"
    access = f"accept its terms on {page}, then `hf auth login` or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ConfigError(f"{model} is gated: {access}") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(f"{model}: no such repository, or a private or gated one: {access}") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise ConfigError(
            f"{model} is not in the local cache, and the hub cannot be reached (offline, or HF_HUB_OFFLINE is set); "
            "download it once where there is a network, or give a folder: timm:local-dir:PATH"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise ConfigError(f"{model}: the hub refuses access ({status}): {access}") from error
        raise ConfigError(f"{model}: the hub answered {status}: {error}") from error


def _load(model: str, known: Special) -> torch.nn.Module:
    import timm

    if ":" not in model and not timm.is_model(model):
        close = difflib.get_close_matches(model.partition(".")[0], timm.list_models(), n=1)
        raise ConfigError(
            f"timm has no model {model!r}. "
            + (
                f"Did you mean {close[0]!r}?"
                if close
                else "timm.list_models() names all; a hub model is hf-hub:OWNER/NAME"
            )
        )
    unmatched: list[str] = []
    with hub_errors(model), _watch_builder(unmatched):
        try:
            # num_classes=0: the features, without the classifier on them.
            made: torch.nn.Module = timm.create_model(model, pretrained=True, num_classes=0, **known.options())
        except (FileNotFoundError, RuntimeError, TypeError, KeyError) as error:
            if type(error).__module__.startswith("huggingface_hub"):
                raise
            raise ConfigError(f"timm:{model} cannot be loaded: {type(error).__name__}: {error}") from error
    if unmatched:
        raise ConfigError(f"timm:{model}: weights and model do not fit, so its features would be wrong. {unmatched[0]}")
    return made


@contextmanager
def _watch_builder(found: list[str]) -> Iterator[None]:
    """Collects timm's messages about weights without a place and places without a weight, which it only logs."""

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith(("Missing keys", "Unexpected keys")) or "using random init" in text:
                found.append(text)

    logger, watch = logging.getLogger("timm.models._builder"), Watch()
    before = logger.level, logger.propagate
    logger.addHandler(watch)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(watch)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _data_config(model: torch.nn.Module) -> dict[str, Any]:
    from timm.data.config import resolve_model_data_config

    return dict(resolve_model_data_config(model))


def _transform(data: dict[str, Any]) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[..., torch.Tensor]]:
    """The evaluation transform of timm in two: of bytes [B, 3, H, W], and the normalisation of floats in [0, 1]."""
    from timm.data.transforms_factory import create_transform

    transforms = import_extra("torchvision.transforms", "encoders")

    steps = create_transform(**data, is_training=False).transforms
    if not isinstance(steps[-1], transforms.Normalize):
        raise ConfigError(f"the model's evaluation transform ends with {steps[-1]}, and must end with a normalisation")
    return transforms.Compose(steps[:-2]), steps[-1]  # between them: bytes of PIL to a tensor
