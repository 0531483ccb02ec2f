"""A step that several verbs share: from a slide or a feature file to tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abbe.console import say
from abbe.errors import BagError, CheckpointError, ConfigError
from abbe.models.classifier import Classifier
from abbe.models.condense import condense_file
from abbe.models.hub import load, weights_sha256
from abbe.slides.encode import encode_slides
from abbe.slides.settings import EncodeSettings, ModelPatches
from abbe.store.detect import SUFFIXES, ZARR
from abbe.store.kind import Kind
from abbe.store.tokens import SlideTokens, write_tokens
from abbe.store.trident import features_path, job_name


def condense_source(source: Path, model_name: str, out: Path, patches: ModelPatches | None = None) -> SlideTokens:
    """Condense a feature file, or a slide (encoded first, into `encoded` beside `out`), and commit the tokens to `out`.

    A slide is encoded as the model's training slides were. Raises BagError if the slide cannot be encoded or the
    features are not of the model's kind, ConfigError if an option contradicts the model.
    """
    model = load(model_name)
    if source.suffix.lower() not in (*SUFFIXES, ZARR):
        settings = encode_settings(model, model_name, patches or ModelPatches())
        source = _encoded(source, out.parent / "encoded", settings)
    condensed = condense_file(model, source)
    condensed.about["model"] = {"name": model_name, "weights_sha256": weights_sha256(model_name)}
    write_tokens(out, condensed)
    return condensed


def encode_settings(model: Classifier, name: str, patches: ModelPatches) -> EncodeSettings:
    """How to encode a slide for a model: as its record says, else as the options say, else by the defaults.

    Says what had to be assumed. Raises ConfigError naming the option that contradicts the model, and CheckpointError
    if the model does not name its encoder.
    """
    encoder, kind = model.config.encoder, model.record.kind if model.record is not None else Kind()
    if encoder is None:
        raise CheckpointError(f"{name}: the model does not name its patch encoder; give a feature file, not a slide")
    values: dict[str, Any] = {}
    assumed = []
    for key, default in (("mpp", EncodeSettings.mpp), ("patch_size", EncodeSettings.patch_size), ("overlap", 0)):
        given, own = getattr(patches, key), getattr(kind, key)
        if given is not None and Kind(**{key: own}).differences(Kind(**{key: given})):
            raise ConfigError(
                f"--{key.replace('_', '-')} is {given:g}, but {name} was trained on {key.replace('_', ' ')} "
                f"{own:g}; omit the option, or train a model on features of that kind"
            )
        value = next(value for value in (own, given, default) if value is not None)
        values[key] = float(value) if key == "mpp" else round(value)
        if own is None and given is None:
            assumed.append(f"{key.replace('_', ' ')} {default:g}")
    if assumed:
        mixed = model.record is not None and model.record.mixed
        why = (
            "was trained on slides of several kinds"
            if mixed
            else "does not record how its training slides were encoded"
        )
        say(f"{name} {why}; assumed {', '.join(assumed)}. Give --mpp, --patch-size or --overlap if that is wrong")
    return EncodeSettings(encoder=encoder, override_mpp=patches.override_mpp, **values)


def _encoded(slide: Path, folder: Path, settings: EncodeSettings) -> Path:
    """The feature file of a slide."""
    (outcome,) = encode_slides([slide], folder, settings)
    if outcome.outcome != "done":
        raise BagError(f"{slide}: {outcome.outcome} at {outcome.stage}: {outcome.reason}")
    job = folder / job_name(settings.mpp, settings.patch_size, settings.overlap)
    return features_path(job, settings.encoder, outcome.slide_id)
