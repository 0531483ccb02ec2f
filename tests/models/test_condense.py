"""A feature file condensed in chunks gives what the whole slide gives, in memory that does not hold its features."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from abbe.errors import BagError, MissingCoordinates
from abbe.models.classifier import Classifier
from abbe.models.condense import condense_file, condense_slide
from abbe.models.config import ClassifierConfig
from abbe.store import chunks
from abbe.store.bags import read_bag, write_bag
from builders import make_bag

METHODS = {
    "tcssa": {"tokens": 4, "hidden": 8},
    "random": {"tokens": 4},
    "mean": {},
    "sparselearn": {"tokens": 4, "context": "none", "scorer_width": 8},
    "attention": {"tokens": 4},  # does not stream: the file is read whole
}


def make_model(condenser: str) -> Classifier:
    config = ClassifierConfig(16, ("a", "b"), condenser, METHODS[condenser], encoder="test")
    return Classifier(config).eval()


@pytest.mark.parametrize("suffix", [".h5", ".safetensors"])
@pytest.mark.parametrize("condenser", METHODS)
def test_chunks_give_what_the_whole_gives(
    condenser: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"slide{suffix}"
    write_bag(path, make_bag(100), layout="trident" if suffix == ".h5" else "tensors")
    monkeypatch.setattr(chunks.read_in_chunks, "__defaults__", (7,))
    model = make_model(condenser)
    streamed, whole = condense_file(model, path), condense_slide(model, read_bag(path))
    for name in ("tokens", "mass", "attention", "weight"):
        torch.testing.assert_close(getattr(streamed, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
    for name in ("mask", "index", "coords"):
        assert torch.equal(getattr(streamed, name), getattr(whole, name)), name
    assert streamed.about.keys() == whole.about.keys()
    shares = streamed.about["probabilities"]
    assert shares == pytest.approx(whole.about["probabilities"], abs=1e-5)


def test_what_cannot_be_used_is_refused_as_in_a_whole_call(tmp_path: Path) -> None:
    model = make_model("tcssa")
    path = tmp_path / "slide.h5"
    write_bag(path, make_bag(50))
    with h5py.File(path, "r+") as file:
        del file["features"]
        rows = np.zeros((50, 16), np.float32)
        rows[33, 5] = np.nan
        file["features"] = rows
    with pytest.raises(BagError, match=r"slide\.h5: features\[33, 5\] is nan; every feature must be finite"):
        condense_file(model, path)
    bare = tmp_path / "bare.h5"
    with h5py.File(bare, "w") as file:
        file["features"] = np.zeros((5, 16), np.float32)
    with pytest.raises(MissingCoordinates, match=r"bare\.h5: no coordinates"):
        condense_file(model, bare)
    other = Classifier(ClassifierConfig(16, ("a", "b"), "mean", encoder="uni"))
    write_bag(tmp_path / "other.h5", make_bag(5))
    with pytest.raises(BagError, match="features of 'test'; the model was trained on 'uni'"):
        condense_file(other, tmp_path / "other.h5")


SCRIPT = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from abbe.models.classifier import Classifier
from abbe.models.condense import condense_file
from abbe.models.config import ClassifierConfig
model = Classifier(ClassifierConfig(64, ("a", "b"), "tcssa", {"tokens": 4, "hidden": 8})).eval()
condense_file(model, Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
condense_file(model, Path(sys.argv[2]))
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10))
"""


@pytest.mark.slow
def test_a_million_patches_take_less_memory_than_their_features(tmp_path: Path) -> None:
    n, side = 1_000_000, 1000
    small, large = tmp_path / "small.h5", tmp_path / "large.h5"
    for path, rows in ((small, 20_000), (large, n)):
        with h5py.File(path, "w") as file:
            file.create_dataset("features", (rows, 64), "f4", chunks=(4096, 64))
            block = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
            for start in range(0, rows, len(block)):
                file["features"][start : start + len(block)] = block
            at = np.arange(rows)
            coords = file.create_dataset("coords", data=np.stack([at % side, at // side], 1) * 256)
            coords.attrs["patch_size_level0"] = 256
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(small), str(large)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    grown_mib = json.loads(done.stdout)
    features_mib = n * 64 * 4 / 2**20
    assert grown_mib < 0.8 * features_mib, f"{grown_mib:.0f} MiB for {features_mib:.0f} MiB of features"
