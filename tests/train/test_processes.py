"""Two real processes train what one trains: the same batches, the same losses, the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from abbe.store.verify import verify
from builders import write_cohort

SCRIPT = """
import json, sys, weakref
from pathlib import Path
import torch
from abbe.data.cohort import load_cohort
from abbe.data.dataset import SlideDataset
from abbe.data.labels import read_labels
from abbe.data.splits import split_patients
from abbe.models.classifier import Classifier
from abbe.models.config import ClassifierConfig
from abbe.train.objectives.classify import ClassifyObjective
from abbe.train.recipe import Recipe
from abbe.train.loop import fit
from abbe.train.processes import leave_together
features, labels, out = map(Path, sys.argv[1:])
cohort = load_cohort(split_patients(read_labels(labels)), features)
options = {"tokens": 4, "hidden": 8, "noise": 0.0, "dropout": 0.0}
config = ClassifierConfig(8, cohort.classes, "tcssa", options, dropout=0.0)
train, val = (SlideDataset(cohort.splits[name]) for name in ("train", "val"))
model, history = fit(lambda: Classifier(config), ClassifyObjective(), train, val, Recipe(epochs=4, lr=1e-2), cpu=True)
from accelerate import PartialState
if PartialState().is_main_process:
    weight = {name: value.flatten()[:50].tolist() for name, value in model.state_dict().items()}
    out.write_text(json.dumps({"world": PartialState().num_processes, "history": history, "weight": weight}))
groups = [weakref.ref(group) for group in [torch.distributed.group.WORLD] if group is not None]
assert len(groups) == (PartialState().num_processes > 1)
leave_together()
assert all(group() is None for group in groups), "the process group and its threads outlive leave_together"
"""


def launch(arguments: list[str], *, processes: int) -> None:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path, patients=30, n=20)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        launch([str(script), str(features), str(labels), str(out)], processes=processes)
        found[processes] = json.loads(out.read_text())
        assert found[processes]["world"] == processes
    for one, two in zip(found[1]["history"], found[2]["history"], strict=True):
        for key in ("loss", "task", "val_loss", "val_task", "val_switch"):
            assert one[key] == pytest.approx(two[key], rel=1e-3), key
    for name, values in found[1]["weight"].items():
        assert values == pytest.approx(found[2]["weight"][name], abs=2e-3), name


@pytest.mark.slow
def test_the_verb_under_two_processes_writes_one_whole_run(tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path, patients=14, n=10)
    run = ["train", "classify", "--features", str(features), "--labels", str(labels), "--out", str(tmp_path / "run")]
    launch(["-m", "abbe.cli", *run, "--cpu", "--recipe.epochs", "2", "--draws", "20"], processes=2)
    assert verify(tmp_path / "run")[1] == []
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 2
