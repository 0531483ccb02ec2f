"""A slide is encoded for a model as its training slides were."""

from __future__ import annotations

from pathlib import Path

import pytest

import abbe
from abbe import cli
from abbe.errors import BagError, CheckpointError, ConfigError
from abbe.models.classifier import Classifier
from abbe.models.config import ClassifierConfig
from abbe.models.hub import save_pretrained
from abbe.models.record import TrainingRecord
from abbe.slides.settings import EncodeSettings, ModelPatches
from abbe.store.kind import Kind
from abbe.store.tokens import read_tokens
from abbe.store.trident import write_features
from abbe.verbs.steps import condense_source, encode_settings
from builders import make_bag

COARSE = Kind("texture", "2", 1.0, 128, 32)


def classifier(
    record: TrainingRecord | None, *, encoder: str | None = "texture", condenser: str = "mean"
) -> Classifier:
    options = {"tokens": 4} if condenser == "attention" else {}
    model = Classifier(ClassifierConfig(16, ("a", "b"), condenser, options, encoder=encoder)).eval()
    model.record = record
    return model


def test_a_slide_is_encoded_as_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier(TrainingRecord(COARSE))
    expected = EncodeSettings(encoder="texture", mpp=1.0, patch_size=128, overlap=32, override_mpp=0.25)
    assert encode_settings(model, "m", ModelPatches(override_mpp=0.25)) == expected
    assert encode_settings(model, "m", ModelPatches(mpp=1.004, patch_size=128, override_mpp=0.25)) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", [{"mpp": 0.5}, {"patch_size": 256}, {"overlap": 0}])
def test_an_option_that_contradicts_the_model_is_refused(option: dict[str, float]) -> None:
    ((key, value),) = option.items()
    flag = f"--{key.replace('_', '-')} is {value:g}"
    with pytest.raises(ConfigError, match=rf"{flag}, .*run/model.* {getattr(COARSE, key):g};"):
        encode_settings(classifier(TrainingRecord(COARSE)), "run/model", ModelPatches(**option))  # type: ignore[arg-type]


@pytest.mark.parametrize("record", [None, TrainingRecord(Kind("texture"), mixed=True)])
def test_what_the_model_does_not_record_is_said(
    record: TrainingRecord | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier(record)
    assert encode_settings(model, "m", ModelPatches()) == EncodeSettings()
    said = capsys.readouterr().err
    assert all(text in said for text in ("mpp 0.5", "patch size 256", "overlap 0", "--mpp"))
    given = encode_settings(model, "m", ModelPatches(mpp=1.0, patch_size=128, overlap=16))
    assert (given.mpp, given.patch_size, given.overlap) == (1.0, 128, 16)
    assert capsys.readouterr().err == ""
    with pytest.raises(CheckpointError, match="m: the model does not name its patch encoder"):
        encode_settings(classifier(record, encoder=None), "m", ModelPatches())


@pytest.mark.parametrize("condenser", ["mean", "attention"])
def test_features_of_another_kind_are_refused_and_tokens_state_theirs(condenser: str, tmp_path: Path) -> None:
    """`mean` streams, `attention` reads the file as a whole."""
    folder = str(tmp_path / "model")
    save_pretrained(classifier(TrainingRecord(COARSE), condenser=condenser), folder, card="# card\n")
    bag = abbe.Bag(make_bag(9).features, make_bag(9).coords, 256.0, "s", mpp=0.5, encoder="texture")
    for name, kind in (("same", COARSE), ("fine", Kind("texture", "2", 0.5, 256, 0)), ("old", Kind("texture", "1"))):
        write_features(tmp_path / f"{name}.h5", bag, kind=kind)
    out = tmp_path / "tokens.safetensors"
    condense_source(tmp_path / "same.h5", folder, out)
    assert Kind(**read_tokens(out).about["features"]).own() == COARSE.own()
    out.unlink()
    for name, said in (("fine", "mpp 1 and 0.5"), ("old", "version 2 and 1")):
        with pytest.raises(BagError, match=rf"{name}\.h5: .*{said}"):
            condense_source(tmp_path / f"{name}.h5", folder, out)
    assert not out.exists()


@pytest.mark.slow
def test_a_slide_is_condensed_to_what_its_feature_file_is(tmp_path: Path, data: Path) -> None:
    """A model of 1.0 µm: the tokens straight from the slide are those of the slide encoded at 1.0 µm."""
    slide, encoded = data / "slides" / "cmu-1-small-region.svs", tmp_path / "encoded"
    options = ["--mpp", "1.0", "--patch-size", "128"]
    assert cli.run(["encode", str(slide), "--out", str(encoded), *options]) == 0
    model = Classifier(ClassifierConfig(256, ("a", "b"), "mean", encoder="texture")).eval()
    model.record = TrainingRecord(Kind("texture", "2", 1.0, 128, 0))
    save_pretrained(model, tmp_path / "model", card="# card\n")
    features = encoded / "10x_128px_0px_overlap" / "features_texture" / "cmu-1-small-region.h5"
    from_file = condense_source(features, str(tmp_path / "model"), tmp_path / "a" / "a.safetensors")
    from_slide = condense_source(slide, str(tmp_path / "model"), tmp_path / "b" / "b.safetensors")
    assert from_file.tokens.equal(from_slide.tokens)
    assert from_file.coords.equal(from_slide.coords)
