"""What the pathology models on the hub need that their files do not say, each from its model card."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

CLASS_AND_MEAN = "class token and mean of patch tokens"

_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_OPTIMUS_COLOURS = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


@dataclass(frozen=True)
class Special:
    """Arguments of the model, how its tokens become a row, and what its transform should be."""

    arguments: dict[str, Any] = field(default_factory=dict)
    pool: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The arguments, layers by name turned into layers."""
        import timm.layers
        import torch

        layers = {"SwiGLUPacked": timm.layers.SwiGLUPacked, "SiLU": torch.nn.SiLU}  # type: ignore[attr-defined]
        return {
            key: layers.get(value, value) if isinstance(value, str) else value for key, value in self.arguments.items()
        }


# By repository, in lower case; the source of each is its card at https://huggingface.co/<repository>.
SPECIAL = {
    "mahmoodlab/uni": Special({"init_values": 1e-5, "dynamic_img_size": True}),
    "mahmoodlab/uni2-h": Special(
        {
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **_SWIGLU,
        }
    ),
    "paige-ai/virchow": Special(_SWIGLU, CLASS_AND_MEAN),
    "paige-ai/virchow2": Special(_SWIGLU, CLASS_AND_MEAN),
    "bioptimus/h-optimus-0": Special({"init_values": 1e-5, "dynamic_img_size": False}, data=_OPTIMUS_COLOURS),
    "bioptimus/h-optimus-1": Special({"init_values": 1e-5, "dynamic_img_size": False}, data=_OPTIMUS_COLOURS),
    # 256 pixels, of which the middle 224.
    "prov-gigapath/prov-gigapath": Special(data={"crop_pct": 0.875, "interpolation": "bicubic"}),
}


def special(model: str) -> Special:
    """What is known about "hf-hub:owner/name[@revision]"; an empty one where nothing is."""
    repository = re.sub(r"^hf[-_]hub:", "", model).partition("@")[0]
    return SPECIAL.get(repository.lower(), Special())
