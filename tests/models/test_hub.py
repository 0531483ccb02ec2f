from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import abbe
from abbe.errors import CheckpointError, ConfigError
from abbe.models.classifier import Classifier
from abbe.models.config import ClassifierConfig
from abbe.models.hub import save_pretrained
from builders import make_batch

OPTIONS = {"tokens": 4, "hidden": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ClassifierConfig(dim=16, classes=("a", "b", "c"), condenser_options=OPTIONS, pooling="attention")
    save_pretrained(Classifier(config), tmp_path / "model", card="# card\n")
    return tmp_path / "model"


def test_a_loaded_model_is_the_saved_one(folder: Path) -> None:
    first, second = abbe.load(folder), abbe.load(str(folder))
    assert first.config.classes == ("a", "b", "c")
    assert not first.training
    batch = make_batch([5, 3], dim=16)
    assert torch.equal(first(batch).logits, second(batch).logits)
    assert sorted(path.name for path in folder.iterdir() if not path.name.endswith(".sha256.json")) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_model_saves_itself(tmp_path: Path) -> None:
    model = Classifier(ClassifierConfig(dim=16, classes=("a", "b"), condenser="mean")).eval()
    model.save_pretrained(tmp_path)
    batch = make_batch([5], dim=16)
    assert torch.equal(abbe.load(tmp_path)(batch).logits, model(batch).logits)
    assert (tmp_path / "README.md").read_text() == "# mean slide classifier\n"


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"poling": "mean"}, "unknown key 'poling'. Did you mean 'pooling'"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"format_version": 7}, "format_version is 7; this version of Abbe reads 1 to 2"),
        ({"hidden": 64}, "cannot be loaded into this model"),
        ({"pooling": "mean"}, "does not match config.json: missing .*, unexpected .*pool"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, values: dict[str, object], message: str) -> None:
    change(folder, **values)
    with pytest.raises(CheckpointError, match=message):
        abbe.load(folder)


def test_a_model_of_format_1_keeps_its_order_of_norm_and_pooling(folder: Path) -> None:
    assert abbe.load(folder).config.norm == "pooled"
    values = json.loads((folder / "config.json").read_text())
    assert values["format_version"] == 2
    del values["norm"]
    (folder / "config.json").write_text(json.dumps({**values, "format_version": 1}))
    old, batch = abbe.load(folder), make_batch([9, 5])
    assert old.config.norm == "tokens"
    with torch.no_grad():
        tokens = old.condenser(old.scaler(batch)).tokens
        rows = [old.norm(slide.features[slide.mask]) for slide in tokens]
        pooled = torch.stack([old.pool(row).softmax(0) @ row for row in rows])
        torch.testing.assert_close(old(batch).logits, old.head(pooled))


def test_altered_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the file has changed since it was written"):
        abbe.load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        abbe.load(folder)


def test_neither_a_folder_nor_a_hub_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder, and cannot be downloaded from the hub"):
        abbe.load("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        abbe.load(tmp_path / "empty")


def test_a_classifier_needs_two_classes_and_a_known_pooling() -> None:
    with pytest.raises(ConfigError, match="at least two classes"):
        ClassifierConfig(dim=4, classes=("a",))
    with pytest.raises(ConfigError, match="mean, attention, summary, abmil, clam, dsmil, transmil, got 'max'"):
        ClassifierConfig(dim=4, classes=("a", "b"), pooling="max")  # type: ignore[arg-type]
