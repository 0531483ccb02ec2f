"""Run a model on one bag: its tokens, where every patch went, and what the model says."""

from __future__ import annotations

import torch

from abbe.errors import BagError, MissingCoordinates
from abbe.models.classifier import Classifier
from abbe.store.aliases import same_encoder
from abbe.store.tokens import SlideTokens
from abbe.types import Bag, TokenBatch


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
