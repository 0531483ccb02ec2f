"""`timm:MODEL`: any image model of timm, from timm itself, the Hugging Face hub or a folder, as a patch encoder."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import logging
import os
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from abbe.errors import ConfigError, nearest
from abbe.slides.patch_encoders.timm_models import CLASS_AND_MEAN, Special, special

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SOURCES = ("hf-hub", "local-dir")
_LOADING = threading.Lock()
# What timm and torch raise about a model's files: a key that is not there, a shape, a value of another type.
_UNFIT = (
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    pickle.UnpicklingError,
)


class TimmEncoder:
    """uint8 [B, H, W, 3] (RGB) → float32 [B, D]; resized, cropped and normalised as the model was evaluated.

    model       a timm model ("vit_small_patch16_224"), a hub repository ("hf-hub:MahmoodLab/UNI", "@revision" after it
                where one is wanted) or a folder with config.json and model.safetensors ("local-dir:models/mine")
    device      and precision: see `create_patch_encoder`

    Any patch size is taken, and made into `input_size` by the model's own transform. Safe to share between threads.
    Raises ConfigError where the model, the extra, the device or the precision cannot be had.
    """

    patch_size: int | None = None

    def __init__(self, model: str, *, device: str = "auto", precision: str = "auto") -> None:
        import_extra("timm", "encoders")
        import_extra("torchvision", "encoders")
        model = _sourced(model)
        self.name = safe_name("timm", model)
        self.device, self.dtype = placed(device, precision)
        known = special(model)
        self._model = _load(model, known).eval().requires_grad_(requires_grad=False)
        self._pool = known.pool
        with _unfit(model):
            data = {**_data_config(self._model), **known.data}
            self.input_size: tuple[int, int] = tuple(data["input_size"][1:])
            self._geometry, self._normalise = _transform(data)
        settings = {key: str(data[key]) for key in sorted(data)} | {"pool": known.pool}
        self.version: int | str = weights_version(self._model, settings)
        self._model.to(self.device)
        with _unfit(model):
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


@contextmanager
def tensors_only(name: str) -> Iterator[None]:
    """Inside, torch.load reads tensors only, whatever the library that calls it asks for: no pickled code runs.

    Raises ConfigError for weights that hold more. One thread at a time, since torch takes this from the environment.
    """
    switches = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    with _LOADING:
        before = {key: os.environ.pop(key) for key in switches if key in os.environ}
        os.environ[switches[0]] = "1"
        try:
            yield
        except (RuntimeError, pickle.UnpicklingError) as error:
            if "weights_only" not in str(error):
                raise
            raise ConfigError(
                f"{name}: its weights are a pickle with more than tensors in it, which could run code; "
                "abbe reads tensors only: use weights saved as safetensors"
            ) from error
        finally:
            del os.environ[switches[0]]
            os.environ.update(before)


@contextmanager
def _unfit(model: str) -> Iterator[None]:
    """What timm and torch raise about a model's files, as ConfigError."""
    remedy = ""
    if model.startswith("local-dir:"):
        remedy = (
            "; its config.json (architecture, model_args, pretrained_cfg) and model.safetensors must be of one model"
        )
    try:
        yield
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except _UNFIT as error:
        if type(error).__module__.startswith("huggingface_hub"):
            raise
        raise ConfigError(f"timm:{model} cannot be loaded: {type(error).__name__}: {error}{remedy}") from error


def _sourced(model: str) -> str:
    """The model, its source written as timm does. ConfigError for an unknown source, or nothing after it."""
    source, colon, rest = model.partition(":")
    if not colon:
        return model
    source = source.lower().replace("_", "-")
    if source not in _SOURCES:
        raise ConfigError(f"timm:{model}: unknown source {source!r}. {nearest(source, _SOURCES)}")
    if not rest.strip():
        raise ConfigError(
            f"timm:{model} names no {'folder' if source == 'local-dir' else 'repository'}; write "
            + ("timm:local-dir:PATH" if source == "local-dir" else "timm:hf-hub:OWNER/NAME")
        )
    return f"{source}:{rest}"


def _check_folder(folder: Path) -> None:
    """ConfigError where config.json names no model of timm, or model.safetensors is not there or torn.

    timm would take other files too, and some of its versions run the code that a pickle holds.
    """
    import timm

    if not folder.is_dir():
        raise ConfigError(f"timm:local-dir:{folder}: no such folder; give one with config.json and model.safetensors")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; timm.models.save_for_hf writes it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error}); timm.models.save_for_hf writes it") from error
    name = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(name, str) or not timm.is_model(name):
        hint = nearest(name, timm.list_models()) if isinstance(name, str) and name else ""
        raise ConfigError(f"{path}: architecture is {name!r}; it must be a model of timm. {hint}".rstrip())
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(key, {}), dict):
            raise ConfigError(f"{path}: {key} is {config[key]!r}; it must be an object, or left out")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(
            f"{weights}: no such file; weights are read from safetensors only (a .bin or .pth is a pickle, which can "
            "run code): save the model with timm.models.save_for_hf(model, folder, safe_serialization=True)"
        )
    try:
        with safe_open(weights, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{weights}: torn, or not safetensors ({error}); copy or save it again") from error


def _load(model: str, known: Special) -> torch.nn.Module:
    import timm

    if model.startswith("local-dir:"):
        _check_folder(Path(model.removeprefix("local-dir:")))
    elif ":" not in model and not timm.is_model(model):
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
    with hub_errors(model), _unfit(model), tensors_only(f"timm:{model}"), _watch_builder(unmatched):
        # num_classes=0: the features, without the classifier on them.
        made: torch.nn.Module = timm.create_model(model, pretrained=True, num_classes=0, **known.options())
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
