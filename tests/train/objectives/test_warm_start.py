"""A condenser taken from another model: kept as it was, or trained on; and every wish that cannot be met."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import abbe
from abbe.errors import CheckpointError, ConfigError
from abbe.evaluate.protocols.holdout import train_classifier
from abbe.store.commit import file_sha256
from abbe.train import loop
from abbe.train.recipe import Recipe
from abbe.verbs.train_classify import TrainClassify
from builders import write_cohort

QUICK = Recipe(epochs=3, lr=1e-2, checkpoint_every=1, early_stop=20)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def trained(cohort: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of four slots with an option that is not the default."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(run_in(out, cohort, tokens=4, condenser_options=("hidden=8", "top_k=1")))
    return out / "model"


def train(run: TrainClassify) -> dict[str, Any]:
    return train_classifier(run, run.out)


def run_in(folder: Path, cohort: tuple[Path, Path], **options: object) -> TrainClassify:
    settings = {"recipe": QUICK, "draws": 100, "cpu": True, **options}
    return TrainClassify(features=cohort[0], labels=cohort[1], out=folder, **settings)  # type: ignore[arg-type]


def parts(folder: Path, name: str) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {key: value for key, value in weights.items() if key.startswith(name)}


@pytest.mark.slow
def test_a_frozen_condenser_stays_and_the_head_learns(tmp_path: Path, cohort: tuple[Path, Path], trained: Path) -> None:
    run = run_in(tmp_path, cohort, condenser_init=str(trained), condenser_train="frozen")
    report = train(run)
    for name in ("condenser.", "scaler."):
        before, after = parts(trained, name), parts(tmp_path / "model", name)
        assert before
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(
        parts(trained, "head.")["head.0.weight"], parts(tmp_path / "model", "head.")["head.0.weight"]
    )
    assert report["condenser_train"] == "frozen"
    assert report["condenser_init_sha256"] == file_sha256(trained / "model.safetensors")
    # Budget and options that were not given are those of the model it came from.
    assert abbe.load(tmp_path / "model").condenser.config["top_k"] == 1
    assert report["tokens"] == 4
    assert json.loads((tmp_path / "config.json").read_text())["condenser_init"] == str(trained)


@pytest.mark.slow
def test_a_joint_condenser_goes_on_from_where_it_was(tmp_path: Path, cohort: tuple[Path, Path], trained: Path) -> None:
    still = Recipe(epochs=1, lr=1e-12, weight_decay=0.0)
    train(run_in(tmp_path / "still", cohort, condenser_init=str(trained), recipe=still))
    train(run_in(tmp_path / "moved", cohort, condenser_init=str(trained)))
    before = parts(trained, "condenser.")
    still_there, moved = (parts(tmp_path / name / "model", "condenser.") for name in ("still", "moved"))
    for key, value in before.items():
        torch.testing.assert_close(still_there[key], value, atol=1e-8, rtol=0)
    assert any(not torch.equal(moved[key], before[key]) for key in before)


@pytest.mark.slow
def test_a_frozen_run_that_was_stopped_goes_on(
    tmp_path: Path, cohort: tuple[Path, Path], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = {"condenser_init": str(trained), "condenser_train": "frozen"}
    train(run_in(tmp_path / "whole", cohort, **wish))
    evaluate, calls = loop._validate, []

    def stop_in_the_third(*arguments: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_validate", stop_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            train(run_in(tmp_path / "broken", cohort, **wish))
    train(run_in(tmp_path / "broken", cohort, **wish))
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_frozen_condenser_takes_the_hard_path_without_noise_in_training(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from abbe.condensers.sparselearn import SparseLearn

    options = {"condenser": "sparselearn", "condenser_options": ("context=none", "scorer_width=8")}
    train(run_in(tmp_path / "first", cohort, **options))
    told: list[str] = []
    condense = SparseLearn.condense

    def watched(self: SparseLearn, *arguments: object, soft: bool) -> object:
        told.append("soft" if soft else "hard")
        return condense(self, *arguments, soft=soft)  # type: ignore[arg-type]

    monkeypatch.setattr(SparseLearn, "condense", watched)
    monkeypatch.setattr(SparseLearn, "set_progress", lambda *_: told.append("progress"))
    init = {"condenser_init": str(tmp_path / "first" / "model"), "condenser_train": "frozen"}
    train(run_in(tmp_path / "second", cohort, **options, **init))
    assert set(told) == {"hard"}


@pytest.mark.slow
def test_wishes_that_cannot_be_met(tmp_path: Path, cohort: tuple[Path, Path], trained: Path) -> None:
    def refused(kind: type[Exception], match: str, **options: object) -> None:
        with pytest.raises(kind, match=match):
            train(run_in(tmp_path / "run", cohort, **options))
        assert not (tmp_path / "run").exists()

    init = {"condenser_init": str(trained)}
    refused(ConfigError, r"--condenser-train frozen needs --condenser-init", condenser_train="frozen")
    refused(
        ConfigError, "its condenser is 'tcssa', not 'attention'; give --condenser tcssa", condenser="attention", **init
    )
    refused(CheckpointError, r"'tokens': 4.* do not fit the options .*'tokens': 8.*same tokens", tokens=8, **init)
    refused(CheckpointError, "do not fit", condenser_options=("hidden=9",), **init)
    refused(ConfigError, "trained on standardised features; remove --no-standardize", standardize=False, **init)
    refused(CheckpointError, "the model name is empty", condenser_init="")
    refused(CheckpointError, r"run: this is a run; its model is .*run/model", condenser_init=str(trained.parent))
    refused(CheckpointError, "not a folder, and cannot be downloaded from the hub", condenser_init="no/such")
    config = trained / "config.json"
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    (stranger / "config.json").write_text(config.read_text().replace('"encoder": "test"', '"encoder": "conch_v15"'))
    refused(ConfigError, "trained on features of conch_v15, but these are from test", condenser_init=str(stranger))
    other = write_cohort(tmp_path / "wide", dim=12)
    refused_on = run_in(tmp_path / "run", other, **init)
    with pytest.raises(ConfigError, match="trained on features of width 8, these have 12"):
        train(refused_on)


@pytest.mark.slow
def test_a_stopped_run_does_not_go_on_from_other_weights(
    tmp_path: Path, cohort: tuple[Path, Path], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = tmp_path / "moving"
    shutil.copytree(trained, moving)
    run = run_in(tmp_path / "run", cohort, condenser_init=str(moving), condenser_train="frozen")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("abbe.evaluate.protocols.holdout.save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    model = abbe.load(moving)
    with torch.no_grad():
        model.condenser.gate.weight.add_(1)
    model.save_pretrained(moving)
    with pytest.raises(
        ConfigError, match=r"inputs\.json: made with other inputs \(condenser_init is sha256 \w{12}… there"
    ):
        train(run)


@pytest.mark.slow
def test_a_condenser_without_weights_has_nothing_to_start_from(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    train(run_in(tmp_path / "first", cohort, condenser="random", recipe=Recipe(epochs=1)))
    init = {"condenser": "random", "condenser_init": str(tmp_path / "first" / "model")}
    with pytest.raises(ConfigError, match="'random' has no trainable weights"):
        train(run_in(tmp_path / "second", cohort, **init))
