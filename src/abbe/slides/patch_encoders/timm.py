"""`timm:MODEL`: an image model of timm, from timm itself, the Hugging Face hub or a folder, as a patch encoder."""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from abbe.errors import ConfigError, nearest
from abbe.slides.patch_encoders.device import autocast, resolve_device
from abbe.slides.patch_encoders.loading import hub_errors, import_extra, safe_name, weights_version
from abbe.slides.patch_encoders.patches import check_patches
from abbe.slides.patch_encoders.timm_models import CLASS_AND_MEAN, ModelCard, model_card

# Model classes for which timm itself always sets `pretrained_strict`, to True.
_STRICT_CLASSES = ("MobileNetV3",)
_EXAMPLES = {"hf-hub": "timm:hf-hub:OWNER/NAME", "local-dir": "timm:local-dir:PATH"}
# What timm and torch raise for files that contradict each other: an unknown argument, a wrong type, shape or key.
_MODEL_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, SafetensorError, TypeError,
    ValueError, pickle.UnpicklingError,
)  # fmt: skip


class TimmEncoder:
    """uint8 [B, H, W, 3] (RGB) → float32 [B, D]. Patches of any size go through the model's evaluation transform.

    model       a timm model ("vit_small_patch16_224"), a hub repository ("hf-hub:OWNER/NAME", optionally with
                "@REVISION") or a folder with config.json and model.safetensors ("local-dir:PATH")
    device      and precision: see `create_patch_encoder`

    Threads may share it. Raises ConfigError if the model, an extra, the device or the precision is not available.
    """

    patch_size: int | None = None

    def __init__(self, model: str, *, device: str = "auto", precision: str = "auto") -> None:
        import_extra("timm", "encoders")
        import_extra("torchvision", "encoders")
        model = _parse(model)
        self.name = safe_name("timm", model)
        self.device, self.dtype = resolve_device(device, precision)
        card = model_card(model)
        self._model = _load(model, card).eval().requires_grad_(requires_grad=False)
        self._pool = card.pool
        with _model_errors(model):
            data, self._resize, self._normalise = _transform(self._model, card)
            self.input_size: tuple[int, int] = tuple(data["input_size"][1:])
        settings = {key: str(data[key]) for key in sorted(data)} | {"pool": card.pool}
        self.version: int | str = weights_version(self._model, settings)
        self._model.to(self.device)
        with _model_errors(model):
            self.width = self(np.zeros((1, *self.input_size, 3), np.uint8)).shape[1]

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features float32 [B, D] of patches uint8 [B, H, W, 3]. Raises InputError for another shape or dtype."""
        # A copy: torch warns about arrays that it may not write to.
        images = torch.tensor(np.ascontiguousarray(check_patches(self.name, patches)))
        if not len(images):
            return np.zeros((0, self.width), np.float32)
        with torch.inference_mode(), autocast(self.device, self.dtype):
            # Resized as bytes, like the images the models were trained on: no overshoot beyond black and white.
            resized = self._resize(images.permute(0, 3, 1, 2).to(self.device))
            rows = self._pooled(self._normalise(resized.float() / 255))
        if rows.ndim != 2:
            raise ConfigError(
                f"{self.name}: the model's output has shape {tuple(rows.shape)}; it must be one row per patch [B, D]"
            )
        return rows.float().cpu().numpy()

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        if self._pool != CLASS_AND_MEAN:
            return self._model(images)
        tokens = self._model.forward_features(images)  # type: ignore[operator]
        prefix: int = self._model.num_prefix_tokens  # type: ignore[assignment]
        return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)


def _parse(model: str) -> str:
    """The name with its source as timm writes it. ConfigError for an unknown source, or no name after it."""
    source, colon, rest = model.partition(":")
    if not colon:
        return model
    source = source.lower().replace("_", "-")
    if source not in _EXAMPLES:
        raise ConfigError(f"timm:{model}: unknown source {source!r}. {nearest(source, _EXAMPLES)}")
    if not rest.strip():
        kind = "folder" if source == "local-dir" else "repository"
        raise ConfigError(f"timm:{model} names no {kind}; write {_EXAMPLES[source]}")
    return f"{source}:{rest}"


def _load(model: str, card: ModelCard) -> torch.nn.Module:
    """The model without its classifier. ConfigError if it is unknown or unavailable, or if its weights do not fit."""
    import timm

    if model.startswith("local-dir:"):
        _check_folder(Path(model.removeprefix("local-dir:")))
    elif ":" not in model and not timm.is_model(model):
        close = difflib.get_close_matches(model.partition(".")[0], timm.list_models(), n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "timm.list_models() lists all; on the hub: hf-hub:OWNER/NAME"
        raise ConfigError(f"timm has no model {model!r}. {hint}")
    options = card.options()
    with _model_errors(model), hub_errors(model):
        # timm reads weights as tensors only. It refuses missing and unexpected keys only if model and config have the
        # same number of classes: load the weights with their classifier, then leave it out.
        whole = _create_strict(model, options)
        classes = getattr(whole, "num_classes", 0)
        if classes != whole.pretrained_cfg.get("num_classes", classes):  # type: ignore[operator,union-attr]
            options["pretrained_cfg_overlay"] = {"num_classes": classes}
            whole = _create_strict(model, options)
        if not classes:
            return whole
        features: torch.nn.Module = timm.create_model(model, **{**options, "num_classes": 0})
        weights = whole.state_dict()
        features.load_state_dict({key: weights[key] for key in features.state_dict()})
    return features


def _create_strict(model: str, options: dict[str, Any]) -> torch.nn.Module:
    """The model with weights whose keys timm has checked. ConfigError for families that timm loads without a check."""
    import timm

    try:
        whole: torch.nn.Module = timm.create_model(model, pretrained=True, pretrained_strict=True, **options)
    except TypeError as error:
        if "pretrained_strict" not in str(error):
            raise
        # The family sets the argument itself. The model without weights tells which family it is.
        if type(timm.create_model(model, **options)).__name__ not in _STRICT_CLASSES:
            raise _unchecked(model) from error
        return timm.create_model(model, pretrained=True, **options)
    kind, name = type(whole).__name__, str(whole.pretrained_cfg.get("architecture"))  # type: ignore[operator,union-attr]
    # timm replaces the argument by False for these.
    if kind == "DaVit" and name.endswith("_fl"):
        raise _unchecked(model)
    if kind == "VisionTransformer" and "siglip" in name and whole.global_pool != "map":
        raise _unchecked(model)
    return whole


def _unchecked(model: str) -> ConfigError:
    return ConfigError(
        f"timm:{model}: timm loads this model without checking that the weights fit it, so missing weights would be "
        "random; use another model (of SigLIP, one with attention pooling: no 'gap' in its name)"
    )


def _check_folder(folder: Path) -> None:
    """ConfigError unless config.json names a model of timm and model.safetensors is whole.

    Without model.safetensors timm would read a pickle.
    """
    import timm

    if not folder.is_dir():
        raise ConfigError(f"timm:local-dir:{folder}: no such folder; give one with config.json and model.safetensors")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); timm.models.save_for_hf writes it") from error
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
            f"{weights}: no such file; weights are read from safetensors only (a .bin or .pth file is a pickle, which "
            "can run code): save the model with timm.models.save_for_hf(model, folder, safe_serialization=True)"
        )
    try:
        with safe_open(weights, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{weights}: not safetensors, or cut short ({error}); copy or save it again") from error


@contextmanager
def _model_errors(model: str) -> Iterator[None]:
    """Turn what timm and torch raise about a model's files into ConfigError."""
    remedy = ""
    if model.startswith("local-dir:"):
        remedy = (
            "; its config.json (architecture, num_classes, model_args, pretrained_cfg) and model.safetensors must "
            "describe the same model"
        )
    try:
        yield
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except _MODEL_ERRORS as error:
        if pickle.UnpicklingError in (type(error), type(error.__cause__)):
            raise ConfigError(
                f"timm:{model}: its weights are a pickle that is damaged or holds more than tensors, which could run "
                "code; use weights saved as safetensors"
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"timm:{model} cannot be loaded: {reason}{remedy}") from error


def _transform(
    model: torch.nn.Module, card: ModelCard
) -> tuple[dict[str, Any], Callable[[torch.Tensor], torch.Tensor], Callable[..., torch.Tensor]]:
    """timm's evaluation transform: its settings, resize and crop of bytes [B, 3, H, W], normalisation of floats."""
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    transforms = import_extra("torchvision.transforms", "encoders")
    data = {**resolve_model_data_config(model), **card.transform}
    steps = create_transform(**data, is_training=False).transforms
    if not isinstance(steps[-1], transforms.Normalize):
        raise ConfigError(f"the model's evaluation transform ends with {steps[-1]}; it must end with a normalisation")
    return data, transforms.Compose(steps[:-2]), steps[-1]  # left out: the step from a PIL image to a tensor
