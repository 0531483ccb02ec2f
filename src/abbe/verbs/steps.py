"""A step that several verbs share: from a slide or a feature file to tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from abbe.errors import BagError, CheckpointError
from abbe.models.classifier import Classifier
from abbe.models.condense import condense_file
from abbe.models.hub import load, weights_sha256
from abbe.slides.encode import encode_slides
from abbe.slides.settings import EncodeSettings
from abbe.store.detect import SUFFIXES, ZARR
from abbe.store.tokens import SlideTokens, write_tokens
from abbe.store.trident import features_path, job_name


def condense_source(source: Path, model_name: str, out: Path, settings: EncodeSettings | None = None) -> SlideTokens:
    """Condense a feature file, or a slide (encoded first, into `encoded` beside `out`), and commit the tokens to `out`.

    Raises BagError if the slide cannot be encoded or the bag does not fit the model.
    """
    model = load(model_name)
    if source.suffix.lower() not in (*SUFFIXES, ZARR):
        source = _encoded(source, out.parent / "encoded", model, settings or EncodeSettings())
    condensed = condense_file(model, source)
    condensed.about["model"] = {"name": model_name, "weights_sha256": weights_sha256(model_name)}
    write_tokens(out, condensed)
    return condensed


def _encoded(slide: Path, folder: Path, model: Classifier, settings: EncodeSettings) -> Path:
    """The feature file of a slide."""
    encoder = model.config.encoder
    if encoder is None:
        raise CheckpointError("the model does not name its patch encoder; give a feature file instead of a slide")
    settings = replace(settings, encoder=encoder)
    (outcome,) = encode_slides([slide], folder, settings)
    if outcome.outcome != "done":
        raise BagError(f"{slide}: {outcome.outcome} at {outcome.stage}: {outcome.reason}")
    job = folder / job_name(settings.mpp, settings.patch_size, settings.overlap)
    return features_path(job, encoder, outcome.slide_id)
