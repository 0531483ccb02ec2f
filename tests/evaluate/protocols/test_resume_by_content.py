"""A run is resumed or read back only with unchanged inputs; stopped at any rename, it ends with the same result."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import abbe
from abbe.errors import ConfigError
from abbe.evaluate.protocols import holdout
from abbe.evaluate.protocols.holdout import train_classifier
from abbe.evaluate.settings import HoldoutSettings
from abbe.store.verify import verify
from abbe.train.recipe import Recipe
from builders import write_cohort

QUICK = Recipe(epochs=2, lr=1e-2, checkpoint_every=1)


def settings(features: Path, labels: Path, **options: Any) -> HoldoutSettings:
    given = {"condenser": "mean", "recipe": QUICK, "draws": 20, "cpu": True, **options}
    return HoldoutSettings(features=features, labels=labels, **given)


def swap_labels(labels: Path) -> None:
    table = pd.read_csv(labels, dtype=str)
    table["label"] = table["label"].map({"a": "b", "b": "a"})
    table.to_csv(labels, index=False)


def stop_before_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(holdout, "write_predictions", stop)


@pytest.mark.parametrize("ended", ["finished", "stopped"])
def test_corrected_labels_are_refused_by_name(ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = write_cohort(tmp_path, patients=14, n=6)
    run = settings(features, labels)
    if ended == "finished":
        train_classifier(run, tmp_path / "run")
    else:
        with monkeypatch.context() as patched:
            stop_before_writing(patched)
            with pytest.raises(KeyboardInterrupt):
                train_classifier(run, tmp_path / "run")
    swap_labels(labels)
    with pytest.raises(
        ConfigError, match=r"inputs\.json: made with other inputs \(labels is sha256 \w{12}… there and .*--no-resume"
    ):
        train_classifier(run, tmp_path / "run")
    again = train_classifier(settings(features, labels, resume=False), tmp_path / "run")
    assert again["labels_sha256"] == hashlib.sha256(labels.read_bytes()).hexdigest()


def test_a_replaced_feature_file_is_refused_by_its_slide(tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path, patients=14, n=6)
    run = settings(features, labels)
    train_classifier(run, tmp_path / "run")
    bag = abbe.read_bag(features / "s03.h5")
    bag.features.add_(1)
    abbe.write_bag(features / "s03.h5", bag)
    with pytest.raises(ConfigError, match=r"\(features\.s03 is sha256 \w{12}… there and sha256 \w{12}… here\)"):
        train_classifier(run, tmp_path / "run")


def test_a_feature_file_replaced_under_an_old_sidecar_is_noticed(tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path, patients=14, n=6)
    run = settings(features, labels)
    train_classifier(run, tmp_path / "run")
    other = tmp_path / "other.h5"
    bag = abbe.read_bag(features / "s03.h5")
    bag.features.mul_(-1)
    abbe.write_bag(other, bag)
    (features / "s03.h5").write_bytes(other.read_bytes())  # the sidecar stays, and the size is the same
    with pytest.raises(ConfigError, match=r"features\.s03 is"):
        train_classifier(run, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model/model.safetensors", "predictions.parquet", "inputs.json"])
def test_an_output_that_is_missing_is_made_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, labels = write_cohort(tmp_path, patients=14, n=6)
    run = settings(features, labels)
    report = train_classifier(run, tmp_path / "run")
    before = (tmp_path / "run" / name).read_bytes()
    (tmp_path / "run" / name).unlink()
    assert train_classifier(run, tmp_path / "run") == report
    assert f"{name} missing or changed" in capsys.readouterr().err
    assert (tmp_path / "run" / name).read_bytes() == before
    assert verify(tmp_path / "run")[1] == []


def contents(folder: Path) -> dict[str, str]:
    """Hashes of a run's files. Sidecars and config.json name the folder or the moment, and are left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".sha256.json") and path != folder / "config.json"
    }


def in_a_child(run: HoldoutSettings, out: Path, *, stop_at: int | None) -> tuple[int, int]:
    """(exit status, number of points) of a run in a forked process, killed at its `stop_at`-th point.

    Points are the moments before and after every fsync and every rename.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        made = 0

        def point() -> None:
            nonlocal made
            made += 1
            if made == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def watched(call: Callable[..., Any]) -> Callable[..., Any]:
            def around(*arguments: Any) -> Any:
                point()
                result = call(*arguments)
                point()
                return result

            return around

        Path.replace = watched(Path.replace)  # type: ignore[method-assign]
        os.fsync = watched(os.fsync)
        status = 1
        try:
            train_classifier(run, out)
            os.write(write, json.dumps(made).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text or "0")


@pytest.mark.slow
def test_stopped_at_any_write_the_same_command_ends_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ABBE_KILLS: number of random points to stop at (`make kills`: all of them)."""
    features, labels = write_cohort(tmp_path, patients=14, n=6)
    run = settings(features, labels)
    torch.set_num_threads(1)
    status, points = in_a_child(run, tmp_path / "whole", stop_at=None)
    assert status == 0
    wanted = contents(tmp_path / "whole")
    assert points >= 100
    kills = min(points, int(os.environ.get("ABBE_KILLS", "12")))
    for number in sorted(random.Random(0).sample(range(1, points + 1), kills)):
        out = tmp_path / f"stopped-{number}"
        assert in_a_child(run, out, stop_at=number)[0] == -signal.SIGKILL, number
        assert in_a_child(run, out, stop_at=None)[0] == 0, f"stopped at point {number} of {points}, it does not resume"
        assert contents(out) == wanted, f"stopped at point {number} of {points}: other bytes"
        assert verify(out)[1] == [], number
        shutil.rmtree(out)
    with capsys.disabled():
        sys.stdout.write(f"stopped at {kills} of {points} points of writing, each resumed to the same bytes\n")
