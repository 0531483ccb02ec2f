"""A slide's tokens on disk: what a model keeps of it, where every patch went, and what the model says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

from abbe.console import result
from abbe.errors import BagError, CheckpointError, MissingCoordinates
from abbe.models.classifier import Classifier
from abbe.models.hub import WEIGHTS, load
from abbe.slides.encode import encode_slides
from abbe.store.aliases import same_encoder
from abbe.store.bags import read_bag
from abbe.store.commit import commit, file_sha256
from abbe.store.detect import SUFFIXES, ZARR
from abbe.store.trident import features_path, job_name
from abbe.types import Assignment, Bag, TokenBatch, offsets_of

FORMAT, VERSION = "abbe-tokens", 1


@dataclass(frozen=True, eq=False)
class SlideTokens:
    """One condensed slide. N patches, K tokens, R routes.

    tokens [K, D], mask [K], mass [K], attention [K] (share of each token in the pooled vector);
    index [N, R] int32 and weight [N, R] as in `Assignment`; coords [N, 2] level-0 pixels, patch_size_level0.
    about: slide_id, condenser, merges, classes, probabilities, mpp, level0_size, model, source.
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
        """[N]: the share of the pooled vector that came through each patch; sums to 1 if nothing was dropped.

        A token's attention is dealt out over its patches by their weights, whatever the method.
        """
        token = self.index.long().clamp_min(0)
        routed = torch.zeros(len(self.tokens)).index_add(0, token.flatten(), self.weight.float().flatten())
        share = self.weight.float() / routed.clamp_min(1e-12)[token]
        return (share * self.attention[token] * (self.index >= 0)).sum(1)

    @property
    def attended(self) -> bool:
        """Whether the head said how much it read of each token; [CLS] pooling and TransMIL do not."""
        return bool(self.attention.any())

    @property
    def main_token(self) -> Tensor:
        """[N]: the token each patch went to with its largest weight, −1 where it was dropped."""
        return Assignment(self.index, self.weight, offsets_of([len(self.index)])).main


@dataclass(frozen=True)
class CondenseSlide:
    """Condense one slide with a trained model, and save its tokens and who went where.

    Example:
      abbe condense out/20x_256px_0px_overlap/features_texture/slide.h5 --model run/model --out tokens.safetensors
      abbe condense slide.svs --model run/model --out tokens.safetensors
    """

    source: tyro.conf.Positional[Path]
    """a feature file, or a slide, which is encoded first (beside --out)"""
    model: str
    """model folder, or hub id"""
    out: Path
    """where the tokens go, a .safetensors file"""
    mpp: float = 0.5
    """microns a pixel at which a slide is encoded"""
    patch_size: int = 256
    """side of a patch in pixels at that mpp, for a slide"""
    override_mpp: float | None = None
    """microns a pixel at level 0, for a slide that does not say"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        condensed = condense_source(
            self.source,
            self.model,
            self.out,
            mpp=self.mpp,
            patch_size=self.patch_size,
            override_mpp=self.override_mpp,
        )
        about, used, n = condensed.about, int(condensed.mask.sum()), len(condensed.coords)
        shares = ", ".join(f"{name} {share:.3f}" for name, share in about["probabilities"].items())
        text = f"{about['slide_id']}: {n} patches → {used} tokens; {shares}; written to {self.out}"
        result(text, {**about, "patches": n, "tokens": used, "out": str(self.out)}, json_output=self.json)
        return 0


def condense_source(
    source: Path,
    model_name: str,
    out: Path,
    *,
    mpp: float = 0.5,
    patch_size: int = 256,
    override_mpp: float | None = None,
) -> SlideTokens:
    """Condense a feature file, or a slide (encoded first, into `encoded` beside `out`), and commit its tokens to `out`.

    Raises BagError where the slide cannot be encoded or the bag does not fit the model.
    """
    model = load(model_name)
    if source.suffix.lower() in (*SUFFIXES, ZARR):
        bag = read_bag(source)
    else:
        bag = _encoded(source, out.parent / "encoded", model, mpp, patch_size, override_mpp)
    condensed = condense_slide(model, bag)
    condensed.about["model"] = {"name": model_name, "weights_sha256": _weights_hash(model_name)}
    write_tokens(out, condensed)
    return condensed


def _encoded(
    slide: Path, folder: Path, model: Classifier, mpp: float, patch_size: int, override_mpp: float | None
) -> Bag:
    encoder = model.config.encoder
    if encoder is None:
        raise CheckpointError("the model does not say which patch encoder it needs; give a feature file, not a slide")
    options = {"encoder": encoder, "mpp": mpp, "patch_size": patch_size, "override_mpp": override_mpp}
    outcome = encode_slides([slide], folder, **options)[0]  # type: ignore[arg-type]
    if outcome.outcome != "done":
        raise BagError(f"{slide}: {outcome.outcome} at {outcome.stage}: {outcome.reason}")
    return read_bag(features_path(folder / job_name(mpp, patch_size, 0), encoder, outcome.slide_id))


@torch.no_grad()
def condense_slide(model: Classifier, bag: Bag) -> SlideTokens:
    """Run a model on one bag. Raises BagError where the bag's encoder is not the model's, or it has no coordinates."""
    expected = model.config.encoder
    if expected is not None and bag.encoder is not None and not same_encoder(bag.encoder, expected):
        raise BagError(
            f"{bag.source or bag.slide_id}: features of {bag.encoder!r}; the model was trained on {expected!r}"
        )
    if bag.coords is None or bag.patch_size_level0 is None:
        raise MissingCoordinates(f"{bag.source or bag.slide_id}: no coordinates, so nothing can be shown on the slide")
    prediction = model.eval()(TokenBatch.pack([bag]))
    kept, assignment = prediction.condensed.tokens, prediction.condensed.assignment
    probabilities = prediction.probabilities[0].tolist()
    about = {
        "slide_id": bag.slide_id,
        "condenser": model.config.condenser,
        "merges": model.condenser.merges,
        "classes": list(model.config.classes),
        "probabilities": dict(zip(model.config.classes, probabilities, strict=True)),
        "mpp": bag.mpp,
        "level0_size": bag.level0_size,
        "source": bag.source,
    }
    return SlideTokens(
        kept.features,
        kept.mask,
        kept.mass,
        prediction.attention,
        assignment.index,
        assignment.weight,
        bag.coords,
        float(bag.patch_size_level0),
        about,
    )


_TENSORS = ("tokens", "mask", "mass", "attention", "index", "weight", "coords")


def write_tokens(path: Path, condensed: SlideTokens) -> None:
    """Commit tokens as safetensors; what is not a tensor goes into its metadata."""
    tensors = {name: getattr(condensed, name).contiguous().clone() for name in _TENSORS}
    about = {**condensed.about, "patch_size_level0": condensed.patch_size_level0}
    with commit(path, format=FORMAT, version=VERSION) as temporary:
        save_file(tensors, temporary, metadata={"abbe": json.dumps(about)})


def read_tokens(path: str | Path) -> SlideTokens:
    """Tokens that `write_tokens` wrote. Raises CheckpointError for any other file."""
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})["abbe"])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a tokens file of `abbe condense` ({error!r})") from error
    size = float(about.pop("patch_size_level0"))
    return SlideTokens(**tensors, patch_size_level0=size, about=about)


def _weights_hash(model: str) -> str | None:
    weights = Path(model) / WEIGHTS
    return file_sha256(weights) if weights.is_file() else None
