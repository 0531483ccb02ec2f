"""Run a model on one slide: its tokens, where every patch went, and the prediction."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from abbe.console import progress
from abbe.errors import BagError, InputError, MissingCoordinates
from abbe.models.classifier import Classifier, ClassifierStream, Prediction
from abbe.store.aliases import same_encoder
from abbe.store.bags import read_bag, read_kind
from abbe.store.chunks import read_in_chunks
from abbe.store.kind import Kind
from abbe.store.tokens import SlideTokens
from abbe.types import Assignment, Bag, TokenBatch, offsets_of


@torch.no_grad()
def condense_slide(model: Classifier, bag: Bag, *, kind: Kind | None = None) -> SlideTokens:
    """Run a model on one bag. Raises BagError if the bag has another encoder than the model, or no coordinates.

    kind: how the features were made, if known; BagError if it is not the kind of the model's training slides.
    """
    kind = _check(model, bag, kind)
    prediction = model.eval()(TokenBatch.pack([bag]))
    return _slide_tokens(model, bag, kind, prediction, prediction.condensed.assignment)


@torch.no_grad()
def condense_file(model: Classifier, path: Path) -> SlideTokens:
    """Run a model on a feature file: in chunks if its condenser streams, so that the features are never all in memory.

    Raises BagError as `read_bag` and `condense_slide` do.
    """
    try:
        stream = model.eval().stream(path.stem)
    except InputError:  # the condenser needs the slide as a whole
        return condense_slide(model, read_bag(path), kind=read_kind(path))
    bag, chunks = read_in_chunks(path)
    kind = _check(model, bag, read_kind(path))
    return _stream(model, bag, kind, stream, chunks)


def _stream(model: Classifier, bag: Bag, kind: Kind, stream: ClassifierStream, chunks: Iterable[Tensor]) -> SlideTokens:
    positions, seen = bag.positions.float(), 0
    assignments: list[Assignment] = []
    with progress(f"condensing {bag.slide_id}", len(bag)) as bar:
        for chunk in chunks:
            rows = slice(seen, seen + len(chunk))
            assignments.append(stream.update(chunk.float(), positions[rows]))
            seen += len(chunk)
            bar.advance(bar.task_ids[0], len(chunk))
    prediction = stream.finish()
    tokens = prediction.condensed.tokens
    if model.condenser.selects:  # a later chunk may displace patches of an earlier one: who is kept is known at the end
        index = torch.full((seen, 1), -1, dtype=torch.int32)
        index[tokens.origin, 0] = torch.arange(len(tokens.origin), dtype=torch.int32)
        weight = (index >= 0).float()
    else:
        index = torch.cat([part.index for part in assignments])
        weight = torch.cat([part.weight for part in assignments])
    return _slide_tokens(model, bag, kind, prediction, Assignment(index, weight, offsets_of([seen])))


def _check(model: Classifier, bag: Bag, kind: Kind | None) -> Kind:
    """The kind of the bag's features, as far as it is known."""
    where, expected = bag.source or bag.slide_id, model.config.encoder
    if expected is not None and bag.encoder is not None and not same_encoder(bag.encoder, expected):
        raise BagError(f"{where}: features of {bag.encoder!r}; the model was trained on {expected!r}")
    if bag.coords is None or bag.patch_size_level0 is None:
        raise MissingCoordinates(f"{where}: no coordinates, so nothing can be shown on the slide")
    kind = kind or Kind(bag.encoder)
    differ = [] if model.record is None else model.record.kind.differences(kind)
    if differ and model.record is not None:
        raise BagError(
            f"{where}: features of another kind than the model was trained on ({'; '.join(differ)}, the model's "
            f"first); the model needs {model.record.kind}; encode the slide again that way"
        )
    return kind


def _slide_tokens(
    model: Classifier, bag: Bag, kind: Kind, prediction: Prediction, assignment: Assignment
) -> SlideTokens:
    assert bag.coords is not None
    assert bag.patch_size_level0 is not None
    kept = prediction.condensed.tokens
    shares = prediction.probabilities[0].tolist()
    about = {
        "slide_id": bag.slide_id,
        "condenser": model.config.condenser,
        "merges": model.condenser.merges,
        "classes": list(model.config.classes),
        "probabilities": dict(zip(model.config.classes, shares, strict=True)),
        "features": kind.stated(),
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
