"""Training for real on small cohorts: what is learned, written, resumed and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import abbe
from abbe.condensers.sparselearn import SparseLearn
from abbe.config import only
from abbe.data.cohort import Cohort
from abbe.data.dataset import LabelledBatch, SlideRecord
from abbe.errors import CheckpointError, ConfigError, InputError, MissingCoordinates, TableError
from abbe.evaluate.protocols import holdout
from abbe.evaluate.protocols.classify import evaluate_classifier
from abbe.evaluate.protocols.holdout import train_classifier
from abbe.evaluate.settings import HoldoutSettings
from abbe.metrics.predictions import read_predictions
from abbe.models.classifier import Classifier
from abbe.models.config import ClassifierConfig
from abbe.store.commit import is_done
from abbe.store.verify import verify
from abbe.train import loop
from abbe.train.loop import DivergedError
from abbe.train.objectives.classify import ClassifyObjective, balanced_weights
from abbe.train.recipe import Recipe
from abbe.verbs.evaluate_classify import EvaluateClassify
from abbe.verbs.train_classify import TrainClassify
from builders import make_batch, write_cohort

QUICK = Recipe(epochs=6, lr=1e-2, checkpoint_every=2, early_stop=20)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def train(run: TrainClassify) -> dict[str, Any]:
    return train_classifier(run, run.out)


def evaluate(run: EvaluateClassify) -> dict[str, Any]:
    return evaluate_classifier(run, run.out)


def run_in(folder: Path, cohort: tuple[Path, Path], **options: object) -> TrainClassify:
    settings = {"tokens": 4, "condenser_options": ("hidden=8",), "recipe": QUICK, "draws": 100, "cpu": True, **options}
    return TrainClassify(features=cohort[0], labels=cohort[1], out=folder, **settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_model_is_learned_written_and_loaded(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    run = run_in(tmp_path / "run", cohort, recipe=Recipe(epochs=20, lr=1e-2))
    report = train(run)
    assert report["metrics"]["test"]["auroc"]["value"] > 0.9
    assert report["slides"] == {"train": 14, "val": 4, "test": 6}
    assert verify(run.out)[1] == []
    model = abbe.load(run.out / "model")
    predictions = read_predictions(run.out / "predictions.parquet")
    row = predictions[predictions["split"] == "test"].iloc[0]
    bag = abbe.read_bag(cohort[0] / f"{row['slide_id']}.h5")
    with torch.no_grad():
        probabilities = model(abbe.TokenBatch.pack([bag])).probabilities[0]
    assert probabilities.tolist() == pytest.approx([row["p_a"], row["p_b"]], abs=1e-5)
    card = (run.out / "model" / "README.md").read_text()
    assert report["labels_sha256"] in card
    history = pd.read_csv(run.out / "history.csv")
    assert history["val_task"].min() < history["val_task"][0]
    assert {"loss", "task", "switch", "val_largest_share"} <= set(history)


@pytest.mark.slow
def test_rare_classes_are_said_and_weights_or_sampling_find_them(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = pd.read_csv(cohort[1], dtype=str)
    few = pd.concat([labels[labels["label"] == "b"], labels[labels["label"] == "a"].head(4)])
    few["split"] = ["train"] * 8 + ["val"] * 2 + ["test"] * 2 + ["train", "train", "val", "test"]
    few.to_csv(tmp_path / "labels.csv", index=False)
    seen: list[torch.Tensor] = []
    call = ClassifyObjective.__call__

    def watched(self: ClassifyObjective, model: torch.nn.Module, batch: LabelledBatch) -> Any:
        if model.training:
            seen.append(batch.labels)
        return call(self, model, batch)

    monkeypatch.setattr(ClassifyObjective, "__call__", watched)
    reports, drawn = {}, {}
    for name, options in {
        "as": {},
        "weight": {"class_weight": "balanced"},
        "sampling": {"sampling": "balanced"},
    }.items():
        seen.clear()
        few_labels = (cohort[0], tmp_path / "labels.csv")
        reports[name] = train(run_in(tmp_path / name, few_labels, recipe=replace(QUICK, lr=3e-3, epochs=20), **options))
        drawn[name] = float((torch.cat(seen) == 0).float().mean())
    assert drawn["as"] == drawn["weight"] == pytest.approx(0.2, abs=0.03)
    assert drawn["sampling"] == pytest.approx(0.5, abs=0.12)
    assert reports["weight"]["class_weight"] == "balanced"
    for report in reports.values():
        assert set(report["recall"]) == {"a", "b"}
        assert report["threshold"]["class"] == "b"
    assert reports["weight"]["best_val_task"] != reports["as"]["best_val_task"]


def test_balanced_weights_are_inverse_to_the_share_of_a_class_and_zero_without_slides() -> None:
    records = [SlideRecord(f"s{row}", f"p{row}", Path(), label) for row, label in enumerate([0] * 8 + [2] * 2)]
    cohort = Cohort(pd.DataFrame(), {"train": records}, ("a", "b", "c"), 8, None, {})
    assert balanced_weights(cohort) == [0.625, 0.0, 2.5]


def test_balanced_weights_multiply_each_slide_s_cross_entropy() -> None:
    model = Classifier(ClassifierConfig(16, ("a", "b"), "mean")).eval()
    batch = LabelledBatch(make_batch([5, 7, 3]), torch.tensor([0, 1, 1]))
    with torch.no_grad():
        each = torch.nn.functional.cross_entropy(model(batch.bags).logits, batch.labels, reduction="none")
        weighted = ClassifyObjective([3.0, 0.5])(model, batch).task_sum
    assert float(weighted) == pytest.approx(float(3 * each[0] + 0.5 * (each[1] + each[2])), rel=1e-5)


def test_a_splits_file_decides_and_slides_in_none_are_listed(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    sides = {"train": [f"s{n:02d}" for n in range(14)], "val": ["s14", "s15", "s16", "s17"], "test": ["s20", "s21"]}
    splits = tmp_path / "splits_0.csv"
    pd.DataFrame({side: pd.Series(slides) for side, slides in sides.items()}).to_csv(splits)
    report = train(run_in(tmp_path / "run", cohort, splits=splits))
    assert report["slides"] == {"train": 14, "val": 4, "test": 2}
    assert sorted(report["outside_splits"]) == ["s18", "s19", "s22", "s23"]
    used = pd.read_csv(tmp_path / "run" / "splits.csv").groupby("split")["slide_id"].apply(list)
    assert used.to_dict() == sides


@pytest.mark.slow
def test_evaluation_of_the_saved_model_gives_the_same_figures(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    run = run_in(tmp_path / "run", cohort)
    report = train(run)
    test = report["metrics"]["test"]
    by_model = evaluate(
        EvaluateClassify(
            out=tmp_path / "e", model=str(run.out / "model"), features=cohort[0], labels=run.out / "splits.csv",
            split="test", draws=100,
        )
    )  # fmt: skip
    by_table = evaluate(
        EvaluateClassify(out=tmp_path / "f", predictions=run.out / "predictions.parquet", split="test", draws=100)
    )
    assert by_model["metrics"] == by_table["metrics"] == test


SPARSE = ("context=none", "scorer_width=8", "heads=2")


@pytest.mark.slow
@pytest.mark.parametrize(("condenser", "given"), [("tcssa", ("hidden=8",)), ("sparselearn", SPARSE)])
def test_stopped_and_resumed_is_bitwise_the_same_as_never_stopped(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, condenser: str, given: tuple[str, ...]
) -> None:
    method = {"condenser": condenser, "condenser_options": given}
    whole = run_in(tmp_path / "whole", cohort, **method)
    train(whole)
    broken = run_in(tmp_path / "broken", cohort, **method)
    evaluate, calls = loop._validate, []

    def stop_in_the_fifth(*arguments: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_validate", stop_in_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    assert is_done(broken.out / "checkpoint" / "epoch-000004" / "state.safetensors")
    assert not (broken.out / "result.json").exists()
    calls.clear()
    monkeypatch.setattr(loop, "_validate", lambda *a: (calls.append(1), evaluate(*a))[1])
    torch.manual_seed(99)
    train(broken)
    assert len(calls) == 2, "epochs 1 to 4 were not trained again"
    one, other = (load_file(run.out / "model" / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole.out / "history.csv").read_bytes() == (broken.out / "history.csv").read_bytes()
    assert not (broken.out / "checkpoint").exists()


@pytest.mark.slow
def test_the_loop_tells_a_condenser_how_far_training_is(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, tau = [], []
    plain = SparseLearn.set_progress

    def heard(self: SparseLearn, fraction: float) -> None:
        plain(self, fraction)
        told.append(fraction)
        tau.append(float(self.tau))

    monkeypatch.setattr(SparseLearn, "set_progress", heard)
    train(run_in(tmp_path, cohort, condenser="sparselearn", condenser_options=SPARSE))
    # 14 slides in batches of 8 are two steps; six epochs.
    assert told == pytest.approx([step / 12 for step in range(12)])
    assert tau[0] == 1.0
    assert tau == sorted(tau, reverse=True)
    assert tau[-1] < 0.1


@pytest.mark.slow
def test_a_finished_run_is_read_back_not_repeated(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    run = run_in(tmp_path, cohort)
    report = train(run)
    before = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(run) == json.loads(json.dumps(report))
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="pooling is 'mean' there and 'attention' here"):
        train(run_in(tmp_path, cohort, pooling="attention"))


@pytest.mark.slow
def test_a_torn_checkpoint_is_refused_by_name(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path, cohort)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(holdout, "save_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    state = tmp_path / "checkpoint" / "epoch-000006" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"state\.safetensors: torn; remove the folder"):
        train(run)


@pytest.mark.slow
def test_the_seed_decides_everything(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = run_in(tmp_path / name, cohort, recipe=Recipe(epochs=2, seed=seed))
        train(run)
        weights.append(load_file(run.out / "model" / "model.safetensors")["head.0.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.slow
@pytest.mark.parametrize("condenser", abbe.list_condensers())
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_every_condenser_trains_under_both_poolings(
    tmp_path: Path, cohort: tuple[Path, Path], condenser: str, pooling: str
) -> None:
    options = tuple(f"{key}={value}" for key, value in abbe.condensers.condenser_class(condenser).small.items()
                    if key != "tokens")  # fmt: skip
    run = run_in(tmp_path, cohort, condenser=condenser, condenser_options=options, pooling=pooling,
                 recipe=Recipe(epochs=2))  # fmt: skip
    report = train(run)
    assert report["metrics"]["val"]["auroc"]["n"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["abmil", "clam", "dsmil", "transmil"])
def test_a_head_of_torchmil_trains_and_is_loaded_again(tmp_path: Path, cohort: tuple[Path, Path], pooling: str) -> None:
    run = run_in(tmp_path / "run", cohort, pooling=pooling, recipe=Recipe(epochs=12, lr=3e-3))
    assert train(run)["metrics"]["test"]["auroc"]["value"] > 0.85
    model = abbe.load(tmp_path / "run" / "model")
    batch = make_batch([9, 4], dim=8)
    with torch.no_grad():
        prediction = model(batch)
    assert (prediction.instance_loss is not None) == (pooling in ("clam", "dsmil"))
    shares = torch.stack(
        [part.sum() for part in prediction.attention.split(prediction.condensed.tokens.lengths.tolist())]
    )
    torch.testing.assert_close(shares, torch.full((2,), 0.0 if pooling == "transmil" else 1.0))


def test_heads_of_torchmil_refuse_classes_they_cannot_serve() -> None:
    from abbe.models.classifier import Classifier
    from abbe.models.config import ClassifierConfig

    with pytest.raises(ConfigError, match=r"pooling 'clam': .* two classes, not 3; abmil is the same pooling"):
        ClassifierConfig(dim=4, classes=("a", "b", "c"), pooling="clam")
    with pytest.raises(ConfigError, match="two classes, not 3; use abmil, clam or transmil"):
        Classifier(ClassifierConfig(dim=4, classes=("a", "b", "c"), pooling="dsmil"))


def test_refusals_before_any_work(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"no option 'hiden'\. Did you mean 'hidden'"):
        train(run_in(tmp_path, cohort, condenser_options=("hiden=8",)))
    with pytest.raises(ConfigError, match="expected name=value"):
        train(run_in(tmp_path, cohort, condenser_options=("hidden",)))
    with pytest.raises(ConfigError, match="unknown name 'tcsa'"):
        train(run_in(tmp_path, cohort, condenser="tcsa"))
    for options, kind, message in (
        ({"condenser_options": ("tokens=4",)}, ConfigError, "condenser option 'tokens=4': use --tokens for the budget"),
        ({"condenser_options": ("dim=4",)}, ConfigError, "option 'dim=4': the width is read from the features"),
        ({"condenser_options": ("top_k=1", "top_k=2")}, ConfigError, "condenser option 'top_k' is given twice"),
        ({"condenser_options": ("gate_bias=no",)}, ConfigError, "gate_bias must be bool, got 'no'"),
        ({"condenser": "sparselearn", "condenser_options": SPARSE, "pooling": "abmil"}, InputError,
         "ignore soft weights; .* --condenser-train frozen"),
        ({"condenser": "slim", "condenser_options": ("embed=20",)}, ConfigError, "slim: embed must be a multiple"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            train(run_in(tmp_path, cohort, **options))
    with pytest.raises(TableError, match=r"column 'case_id' has one value|has 1 patients"):
        train(run_in(tmp_path, cohort, label="case_id"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pooling", ["clam", "dsmil"])
def test_what_a_pooling_teaches_single_tokens_is_in_the_loss(pooling: str) -> None:
    from abbe.models.classifier import Classifier
    from abbe.models.config import ClassifierConfig

    model = Classifier(ClassifierConfig(dim=16, classes=("a", "b"), condenser="none", pooling=pooling)).eval()  # type: ignore[arg-type]
    batch = LabelledBatch(make_batch([30, 40]), torch.tensor([0, 1]))
    with torch.no_grad():
        step, prediction = ClassifyObjective()(model, batch), model(batch.bags)
        assert prediction.instance_loss is not None
        taught = float(prediction.instance_loss(batch.labels))
    assert taught > 0
    assert float(step.loss_sum) == pytest.approx(float(step.task_sum) + taught, rel=1e-5)


def test_a_loss_that_is_not_finite_from_the_start_is_an_option_s_fault(
    tmp_path: Path, cohort: tuple[Path, Path]
) -> None:
    run = run_in(tmp_path / "run", cohort, condenser_options=("hidden=8", "aux_weight=1e39"))
    with pytest.raises(ConfigError, match=r"tcssa with .*1e\+39.*the loss is inf before any training"):
        train(run)
    assert not run.out.exists()


@pytest.mark.slow
def test_features_of_a_large_scale_are_brought_to_one_before_anything_is_refused(tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path / "cohort")
    for path in sorted(features.glob("*.h5")):
        bag = abbe.read_bag(path)
        abbe.write_bag(path, replace(bag, features=bag.features * 1e25))
    quick = {"recipe": Recipe(epochs=1)}
    report = train(run_in(tmp_path / "scaled", (features, labels), **quick))
    assert report["metrics"]["test"]["auroc"]["n"] == 6
    raw = run_in(tmp_path / "raw", (features, labels), standardize=False, **quick)
    with pytest.raises(ConfigError, match="the scale of unstandardised features, is out of range"):
        train(raw)


def test_a_run_of_an_earlier_version_is_the_same_run(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    """Its settings lack what came later, and name a budget of 32 that is now what is meant when none is given."""
    run = run_in(tmp_path, cohort, tokens=None)
    settings = only(HoldoutSettings, run)
    old = {key: value for key, value in settings.items() if not key.startswith("condenser_")} | {"tokens": 32}
    old["condenser_options"] = settings["condenser_options"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    holdout._check_settings(tmp_path / "config.json", run)
    (tmp_path / "config.json").write_text(json.dumps(old | {"tokens": 16}))
    with pytest.raises(ConfigError, match=r"config.json: made with other settings \(tokens is 16 there and 32 here\)"):
        holdout._check_settings(tmp_path / "config.json", run)


def test_features_without_coordinates_are_refused_by_slide_before_any_work(tmp_path: Path) -> None:
    features, labels = write_cohort(tmp_path / "cohort")
    for path in sorted(features.glob("*.h5")):
        bag = abbe.read_bag(path)
        path.unlink()
        path.with_name(f"{path.name}.sha256.json").unlink()
        torch.save(bag.features, path.with_suffix(".pt"))
    run = run_in(tmp_path / "run", (features, labels), condenser="thumbnail", condenser_options=())
    with pytest.raises(MissingCoordinates, match=r"thumbnail needs positions, and slide 's\d\d' has no coordinates"):
        train(run)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_keeps_all_says_so(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    run = run_in(tmp_path, cohort, condenser="none", condenser_options=(), recipe=Recipe(epochs=1))
    assert train(run)["tokens"] == 1.0
    assert abbe.load(tmp_path / "model").config.condenser_options == {"tokens": 1.0}


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    with pytest.raises(DivergedError, match="the training loss became"):
        train(run_in(tmp_path, cohort, recipe=Recipe(epochs=3, lr=1e30)))


def test_pooling_honours_weight_and_mask() -> None:
    from abbe.models.classifier import Classifier
    from abbe.models.config import ClassifierConfig
    from abbe.types import TokenBatch

    batch = make_batch([6], dim=16)
    for pooling in ("mean", "attention"):
        model = Classifier(ClassifierConfig(dim=16, classes=("a", "b"), condenser="none", pooling=pooling)).eval()
        weight = torch.tensor([1.0, 1.0, 1.0, 1e-9, 1e-9, 1e-9])
        few = model(TokenBatch(**{**vars(batch), "weight": weight})).attention
        assert float(few[3:].detach().sum()) < 1e-4
        mask = torch.tensor([True, False, True, True, True, True])
        masked = model(TokenBatch(**{**vars(batch), "mask": mask})).attention
        assert float(masked[1].detach()) == 0.0
        assert float(masked.detach().sum()) == pytest.approx(1.0, abs=1e-6)
