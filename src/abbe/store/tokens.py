"""A condensed slide on disk: its tokens, the assignment of its patches, and the prediction of the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from abbe.errors import CheckpointError
from abbe.store.commit import commit
from abbe.types import Assignment, offsets_of

FORMAT, VERSION = "abbe-tokens", 1


@dataclass(frozen=True, eq=False)
class SlideTokens:
    """One condensed slide. N patches, K tokens, R routes.

    tokens [K, D], mask [K], mass [K], attention [K] (weight of each token in the pooled vector);
    index [N, R] int32 and weight [N, R] as in `Assignment`; coords [N, 2] level-0 pixels, patch_size_level0.
    about: slide_id, condenser, merges, classes, probabilities, features (their kind), mpp, level0_size, model, source.
    Files of earlier versions have no `features`.
    """

    tokens: Tensor
    mask: Tensor
    mass: Tensor
    attention: Tensor
    index: Tensor
    weight: Tensor
    coords: Tensor
    patch_size_level0: float
    about: dict[str, Any]

    @property
    def contribution(self) -> Tensor:
        """[N]: share of each patch in the pooled vector; sums to 1 if no patch was dropped.

        The attention of a token is distributed over its patches in proportion to their weights, for every method.
        """
        token = self.index.long().clamp_min(0)
        routed = torch.zeros(len(self.tokens)).index_add(0, token.flatten(), self.weight.float().flatten())
        share = self.weight.float() / routed.clamp_min(1e-12)[token]
        return (share * self.attention[token] * (self.index >= 0)).sum(1)

    @property
    def attended(self) -> bool:
        """Whether the head returned attention weights; [CLS] pooling and TransMIL do not."""
        return bool(self.attention.any())

    @property
    def main_token(self) -> Tensor:
        """[N]: the token with the largest weight for each patch; −1 if the patch was dropped."""
        return Assignment(self.index, self.weight, offsets_of([len(self.index)])).main


_TENSORS = ("tokens", "mask", "mass", "attention", "index", "weight", "coords")


def write_tokens(path: Path, condensed: SlideTokens) -> None:
    """Write tokens as safetensors; values that are not tensors go into its metadata."""
    tensors = {name: getattr(condensed, name).contiguous().clone() for name in _TENSORS}
    about = {**condensed.about, "patch_size_level0": condensed.patch_size_level0}
    with commit(path, format=FORMAT, version=VERSION) as temporary:
        save_file(tensors, temporary, metadata={"abbe": json.dumps(about)})


def read_tokens(path: str | Path) -> SlideTokens:
    """Read a file written by `write_tokens`. Raises CheckpointError for any other file."""
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})["abbe"])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a tokens file of `abbe condense` ({error!r})") from error
    size = float(about.pop("patch_size_level0"))
    return SlideTokens(**tensors, patch_size_level0=size, about=about)
