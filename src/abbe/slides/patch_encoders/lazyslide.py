"""`lazyslide:NAME`: an image model of LazySlide's registry as a patch encoder."""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abbe.errors import ConfigError, nearest
from abbe.slides.patch_encoders.timm import (
    half_precision,
    hub_errors,
    import_extra,
    placed,
    safe_name,
    tensors_only,
    weights_version,
)


class LazyslideEncoder:
    """uint8 [B, H, W, 3] (RGB) → float32 [B, D], by the transform and the `encode_image` of the registered model.

    Raises ConfigError for a name that is not registered, a model that encodes no images or runs code from its
    repository, and what `create_patch_encoder` says. Safe to share between threads.
    """

    patch_size: int | None = None

    def __init__(self, model: str, *, device: str = "auto", precision: str = "auto") -> None:
        models = import_extra("lazyslide_models", "lazyslide")
        self.name = safe_name("lazyslide", model)
        self.device, self.dtype = placed(device, precision)
        if model not in models.MODEL_REGISTRY:
            raise ConfigError(f"lazyslide has no model {model!r}. {nearest(model, models.MODEL_REGISTRY)}")
        kind = models.MODEL_REGISTRY[model]
        if not hasattr(kind, "encode_image"):
            raise ConfigError(f"lazyslide:{model} encodes no images; list_models('vision') names those that do")
        if "trust_remote_code=True" in inspect.getsource(sys.modules[kind.__module__]):
            raise ConfigError(f"lazyslide:{model} runs code from its repository on the hub, which abbe does not do")
        page = str(getattr(kind, "hf_url", None) or "its page")
        try:
            with hub_errors(page.removeprefix("https://huggingface.co/")), tensors_only(f"lazyslide:{model}"):
                self._model = kind()
        except (ImportError, OSError) as error:  # transformers turns what the hub says into an OSError
            raise ConfigError(
                f"lazyslide:{model} cannot be loaded: {error}. If it is gated: accept its terms on {page}, then "
                "`hf auth login` or set HF_TOKEN"
            ) from error
        self._transform = self._model.get_transform()
        network = self._model.model
        settings = {"model": model, "lazyslide-models": version("lazyslide-models")}
        self.version: int | str = weights_version(network, settings)
        network.eval()
        self._model.to(self.device)
        self.width = self(np.zeros((1, 224, 224, 3), np.uint8)).shape[1]

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features float32 [B, D] of patches uint8 [B, H, W, 3]. InputError for another shape or type."""
        patches = np.array(patches)  # a copy: torch warns about arrays it may not write to
        if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[3] != 3:
            raise ConfigError(f"{self.name}: patches are {patches.dtype} {patches.shape}; must be uint8 [B, H, W, 3]")
        if not len(patches):
            return np.zeros((0, self.width), np.float32)
        with torch.inference_mode(), half_precision(self.device, self.dtype):
            images = torch.stack([self._transform(patch) for patch in patches]).to(self.device)
            rows: Any = self._model.encode_image(images)
        return torch.as_tensor(rows).float().cpu().numpy()
