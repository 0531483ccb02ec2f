"""What pathology models on the hub need beyond their config.json, each from its model card."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

CLASS_AND_MEAN = "class token and mean of patch tokens"


@dataclass(frozen=True)
class ModelCard:
    """Arguments of the model, how its tokens are pooled ("": by the model), and changes to its transform."""

    arguments: dict[str, Any] = field(default_factory=dict)
    swiglu: bool = False
    pool: str = ""
    transform: dict[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The arguments as timm takes them, layer classes included."""
        if not self.swiglu:
            return dict(self.arguments)
        from timm.layers import SwiGLUPacked  # type: ignore[attr-defined]
        from torch.nn import SiLU

        return {**self.arguments, "mlp_layer": SwiGLUPacked, "act_layer": SiLU}


_UNI2 = {
    "num_classes": 0, "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5,
    "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True,
}  # fmt: skip
_OPTIMUS_TRANSFORM = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
_OPTIMUS = ModelCard({"init_values": 1e-5, "dynamic_img_size": False}, transform=_OPTIMUS_TRANSFORM)

# By repository in lower case; the card is at https://huggingface.co/<repository>.
MODEL_CARDS = {
    "mahmoodlab/uni": ModelCard({"init_values": 1e-5, "dynamic_img_size": True}),
    "mahmoodlab/uni2-h": ModelCard(_UNI2, swiglu=True),
    "paige-ai/virchow": ModelCard(swiglu=True, pool=CLASS_AND_MEAN),
    "paige-ai/virchow2": ModelCard(swiglu=True, pool=CLASS_AND_MEAN),
    "bioptimus/h-optimus-0": _OPTIMUS,
    "bioptimus/h-optimus-1": _OPTIMUS,
    # Resize to 256 pixels, crop the middle 224.
    "prov-gigapath/prov-gigapath": ModelCard(transform={"crop_pct": 0.875, "interpolation": "bicubic"}),
}


def model_card(model: str) -> ModelCard:
    """The card of "hf-hub:owner/name[@revision]"; an empty one for other models."""
    repository = re.sub(r"^hf[-_]hub:", "", model).partition("@")[0]
    return MODEL_CARDS.get(repository.lower(), ModelCard())
