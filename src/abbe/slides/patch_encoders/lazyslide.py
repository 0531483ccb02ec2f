"""`lazyslide:NAME`: an image model of LazySlide's registry as a patch encoder."""

from __future__ import annotations

import inspect
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abbe.errors import ConfigError, nearest
from abbe.slides.patch_encoders.device import autocast, resolve_device
from abbe.slides.patch_encoders.loading import hub_errors, import_extra, safe_name, weights_version
from abbe.slides.patch_encoders.patches import check_patches

_LOADING = threading.Lock()


class LazyslideEncoder:
    """uint8 [B, H, W, 3] (RGB) → float32 [B, D], by the transform and `encode_image` of the registered model.

    Threads may share it. Raises ConfigError for a name that is not registered, a model that does not encode images or
    runs code from its repository, and what `create_patch_encoder` lists.
    """

    patch_size: int | None = None

    def __init__(self, model: str, *, device: str = "auto", precision: str = "auto") -> None:
        models = import_extra("lazyslide_models", "lazyslide")
        self.name = safe_name("lazyslide", model)
        self.device, self.dtype = resolve_device(device, precision)
        if model not in models.MODEL_REGISTRY:
            raise ConfigError(f"lazyslide has no model {model!r}. {nearest(model, models.MODEL_REGISTRY)}")
        kind = models.MODEL_REGISTRY[model]
        if not hasattr(kind, "encode_image"):
            raise ConfigError(f"lazyslide:{model} does not encode images; list_models('vision') lists those that do")
        if "trust_remote_code=True" in inspect.getsource(sys.modules[kind.__module__]):
            raise ConfigError(f"lazyslide:{model} runs code from its repository on the hub, which abbe does not allow")
        page = str(getattr(kind, "hf_url", None) or "its page")
        try:
            with hub_errors(page.removeprefix("https://huggingface.co/")), tensors_only(f"lazyslide:{model}"):
                self._model = kind()
        except (ImportError, OSError) as error:  # transformers turns errors of the hub into OSError
            raise ConfigError(
                f"lazyslide:{model} cannot be loaded: {error}. If it is gated: accept its terms on {page}, then run "
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
        """Features float32 [B, D] of patches uint8 [B, H, W, 3]. Raises InputError for another shape or dtype."""
        patches = check_patches(self.name, patches).copy()  # torch warns about arrays that it may not write to
        if not len(patches):
            return np.zeros((0, self.width), np.float32)
        with torch.inference_mode(), autocast(self.device, self.dtype):
            images = torch.stack([self._transform(patch) for patch in patches]).to(self.device)
            rows: Any = self._model.encode_image(images)
        return torch.as_tensor(rows).float().cpu().numpy()


@contextmanager
def tensors_only(name: str) -> Iterator[None]:
    """Inside, torch.load reads tensors only, even where its caller passes weights_only=False: no pickled code runs.

    The environment is the only way: LazySlide's models call torch.load themselves, some with weights_only=False. It
    belongs to the whole process, so one thread at a time. Raises ConfigError for weights that hold more than tensors.
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
                f"{name}: its weights are a pickle that is damaged or holds more than tensors, which could run code; "
                "use weights saved as safetensors"
            ) from error
        finally:
            del os.environ[switches[0]]
            os.environ.update(before)
