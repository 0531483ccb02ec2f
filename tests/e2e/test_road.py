"""The whole road on real files: a slide, its features, a model, its tokens, its pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import abbe
from abbe import cli
from abbe.bench.needle import bench_needle, markdown
from abbe.bench.ops import bench_ops
from abbe.bench.texture import bench_texture
from abbe.errors import BagError, CheckpointError, ConfigError
from abbe.models.classifier import Classifier
from abbe.models.condense import condense_slide
from abbe.models.config import ClassifierConfig
from abbe.models.hub import save_pretrained
from abbe.phantom.settings import BankPlan, CohortPlan
from abbe.store.tokens import read_tokens
from abbe.store.verify import verify
from abbe.train.recipe import Recipe
from abbe.verbs.bench_needle import BenchNeedle
from abbe.verbs.bench_ops import BenchOps
from abbe.verbs.bench_texture import BenchTexture
from abbe.verbs.demo import Demo
from abbe.verbs.tour import tour
from builders import make_bag


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained TC-SSA classifier for `texture` features."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = ClassifierConfig(256, ("a", "b"), "tcssa", {"tokens": 32, "hidden": 16}, "attention", encoder="texture")
    save_pretrained(Classifier(config), folder, card="# untrained\n")
    return folder


@pytest.mark.slow
def test_a_real_slide_to_pictures(tmp_path: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slide = data / "slides" / "cmu-1-small-region.svs"
    assert cli.run(["encode", str(slide), "--out", str(tmp_path / "out"), "--json"]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert outcome["outcome"] == "done"
    assert 40 <= outcome["patches"] <= 46
    bag_path = tmp_path / "out" / "20x_256px_0px_overlap" / "features_texture" / "cmu-1-small-region.h5"
    bag = abbe.read_bag(bag_path)
    assert (bag.patch_size_level0, bag.level0_size, bag.encoder) == (256.0, (2220, 2967), "texture")
    tokens = tmp_path / "tokens.safetensors"
    assert cli.run(["condense", str(bag_path), "--model", str(model), "--out", str(tokens)]) == 0
    assert f"{len(bag)} patches → " in capsys.readouterr().out
    assert read_tokens(tokens).tokens.shape == (32, 256)
    pictures = tmp_path / "pictures"
    assert cli.run(["export", "heatmap", str(slide), "--tokens", str(tokens), "--out", str(pictures)]) == 0
    for name in ("slots", "weight", "gallery"):
        assert np.asarray(Image.open(pictures / f"cmu-1-small-region_{name}.png")).std() > 10
    assert verify(tmp_path)[1] == []
    # A pooling that does not say what it read of each token has no such picture.
    silent = ClassifierConfig(256, ("a", "b"), "tcssa", {"tokens": 8, "hidden": 16}, "transmil", encoder="texture")
    save_pretrained(Classifier(silent), tmp_path / "silent", card="# untrained\n")
    features = ["--features", str(bag_path), "--out", str(tmp_path / "few")]
    capsys.readouterr()
    assert cli.run(["export", "heatmap", str(slide), "--model", str(tmp_path / "silent"), *features, "--json"]) == 0
    said = capsys.readouterr()
    assert [Path(name).stem.rpartition("_")[2] for name in json.loads(said.out)] == ["slots", "gallery"]
    assert "no picture of weights: the pooling of this model has no weight per token" in said.err


@pytest.mark.slow
def test_a_slide_is_encoded_on_the_way_and_another_slide_s_tokens_are_refused(
    tmp_path: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = data / "slides" / "cmu-1-small-region.svs"
    arguments = ["export", "heatmap", str(slide), "--model", str(model), "--out", str(tmp_path)]
    assert cli.run([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    other = data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    made = tmp_path / "cmu-1-small-region.safetensors"
    assert cli.run(["export", "heatmap", str(other), "--tokens", str(made), "--out", str(tmp_path)]) == 2
    assert "these tokens are of a slide of 2220 × 2967" in capsys.readouterr().err
    assert cli.run(["condense", str(other), "--model", str(model), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "failed at geometry" in capsys.readouterr().err


def test_a_bag_of_another_encoder_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError, match="features of 'test'; the model was trained on 'texture'"):
        condense_slide(abbe.load(model), make_bag(5, dim=256))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not a tokens file"):
        read_tokens(tmp_path / "x.safetensors")


def test_a_slide_s_tokens_are_the_same_alone_and_in_a_batch_of_eight() -> None:
    """The acceptance figure: float32, the default width of `texture`, bags of 700 to 2,100 patches, 32 slots."""
    condenser = abbe.create_condenser("tcssa", dim=256, tokens=32).eval()
    bags = [make_bag(700 + 200 * i, dim=256, slide_id=f"s{i}", seed=i) for i in range(8)]
    with torch.no_grad():
        whole = condenser(abbe.TokenBatch.pack(bags)).tokens
        for b, bag in enumerate(bags):
            alone = condenser(abbe.TokenBatch.pack([bag])).tokens
            assert float((alone.features - whole[b].features).abs().max()) <= 1e-5


SMALL = BankPlan(sites=1, normal=(2, 1, 1), tumour=(2, 1, 1))


@pytest.mark.slow
def test_the_tour_from_end_to_end(tmp_path: Path) -> None:
    plan = CohortPlan(0.05, (16, 6, 8), 60)
    run = Demo(out=tmp_path / "demo", plan=plan, bank=SMALL, recipe=Recipe(epochs=1), draws=50)
    found = tour(run)
    assert set(found["metrics"]) == {
        "none-1-attention",
        "tcssa-32-attention",
        "random-32-attention",
        "mean-1-mean",
        "ceiling",
        "oracle",
    }
    page = (run.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 + 3 * 4
    assert verify(run.out)[1] == []
    model = run.out / "runs" / "tcssa-32-attention" / "seed0" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    again = tour(run)
    assert model.stat().st_mtime_ns == before
    assert again["metrics"] == found["metrics"]


@pytest.mark.long
def test_the_needle_benchmark_in_small(tmp_path: Path) -> None:
    run = BenchNeedle(
        out=tmp_path, fractions=(0.05,), seeds=(0, 1), tune_at=0.05, rates=(1e-3,), slides=(12, 6, 8), patches=40,
        epochs=1, bank=SMALL, draws=50,
    )  # fmt: skip
    found = bench_needle(run)
    assert found["curves"]["oracle"][0]["auroc"]["value"] == 1.0
    text = markdown(found)
    for name in ("tcssa-32-attention", "random-32-attention", "mean-1-mean", "none-1-attention", "ceiling"):
        assert f"| {name} | 0." in text or f"| {name} | 1." in text
    assert set(found["minus_none"]) == {"tcssa-32-attention", "random-32-attention", "mean-1-mean"}
    with pytest.raises(ConfigError, match=r"unknown name 'tcsa' in condensers\. Did you mean 'tcssa'"):
        bench_needle(replace(run, condensers=("tcsa",)))
    with pytest.raises(ConfigError, match="--condensers none none: name at least one method, each once"):
        bench_needle(replace(run, condensers=("none", "none")))


def test_the_ops_benchmark_in_small() -> None:
    found = bench_ops(BenchOps(patches=500, width=16, rounds=1))
    for values in found["types"].values():
        assert values["relative_error"] < 2e-6
    for wrong, message in (({"rounds": 0}, "rounds must be at least 1"), ({"slots": 1}, "slots must be at least 2")):
        with pytest.raises(ConfigError, match=message):
            BenchOps(**wrong).run()  # type: ignore[arg-type]


def test_the_texture_benchmark_in_small() -> None:
    found = bench_texture(BenchTexture(per_class=1, rounds=2, side=64))
    assert found["per_second_wall"]["median"] >= found["per_second_wall"]["min"] > 0
    assert found["patches"] == 12
