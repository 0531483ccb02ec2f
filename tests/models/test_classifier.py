"""Heads: the pooled tokens, the summary, and what a condenser predicts on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from abbe.condensers import condenser_class, list_condensers
from abbe.data.dataset import LabelledBatch
from abbe.errors import BagError, ConfigError, InputError
from abbe.models.classifier import Classifier
from abbe.models.config import ClassifierConfig
from abbe.train.objectives.classify import ClassifyObjective
from builders import make_batch

SLIM = {"tokens": 4, "embed": 16, "layers": 3, "heads": 2, "hidden": 16, "piece": 8, "levels": 2}


def build(condenser: str, pooling: str = "mean", **options: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(16, ("a", "b"), condenser, options, pooling))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condenser", "options", "names"),
    [
        ("attention", {"tokens": 4, "hidden": 8}, {"attention"}),
        ("slim", SLIM, {"cropr/1", "cropr/2"}),
        ("mean", {}, set()),
    ],
)
def test_every_prediction_of_a_condenser_has_a_head_and_its_loss_is_added(condenser, options, names):
    model = build(condenser, **options)
    batch, labels = make_batch([9, 5]), torch.tensor([0, 1])
    assert not model.eval()(batch).auxiliary
    model.train()
    model.head.eval()  # no dropout, so that both calls agree
    prediction = model(batch)
    assert set(prediction.auxiliary) == names
    step = ClassifyObjective()(model, LabelledBatch(batch, labels))
    task = F.cross_entropy(prediction.logits, labels, reduction="sum")
    extra = sum(F.cross_entropy(x, labels, reduction="sum") for x in prediction.auxiliary.values())
    assert step.task_sum.item() == pytest.approx(task.item(), rel=1e-5)
    assert step.loss_sum.item() == pytest.approx((task + extra).item(), rel=1e-5)


def test_slim_s_queries_learn_from_their_own_loss_and_the_blocks_do_not():
    model = build("slim", **SLIM)
    prediction = model(make_batch([9, 5]))
    sum(x.sum() for x in prediction.auxiliary.values()).backward()
    assert all(cropr.queries.grad.abs().sum() > 0 for cropr in model.condenser.croppers)
    assert all(p.grad is None or not p.grad.any() for p in model.condenser.encoder.parameters())


def written_out(model: Classifier, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The head's formula in float64 (METHODS 1.8): weighted mean → LayerNorm → MLP with GELU."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    pooled = (weight.double()[:, None] * rows.double()).sum(0) / weight.double().sum()
    centred = pooled - pooled.mean()
    normed = centred / (centred.square().mean() + 1e-5).sqrt() * weights["norm.weight"] + weights["norm.bias"]
    inner = weights["head.0.weight"] @ normed + weights["head.0.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return weights["head.3.weight"] @ inner + weights["head.3.bias"]


@pytest.mark.parametrize("condenser", ["none", "tcssa", "random"])
def test_logits_are_those_of_the_formula_pool_then_norm(condenser):
    model, batch = build(condenser, tokens=4).eval(), make_batch([9, 5])
    torch.nn.init.normal_(model.norm.weight)
    torch.nn.init.normal_(model.norm.bias)
    with torch.no_grad():
        prediction = model(batch)
    for b, slide in enumerate(prediction.condensed.tokens):
        expected = written_out(model, slide.features[slide.mask], slide.weight[slide.mask])
        torch.testing.assert_close(prediction.logits[b].double(), expected, atol=1e-6, rtol=0)


def test_the_size_of_a_token_counts():
    """With the norm on each token, one patch 20 times larger moved the logits by 4e-8."""
    model, batch = build("none").eval(), make_batch([9])
    larger = replace(batch, features=batch.features * torch.tensor([20.0] + [1.0] * 8)[:, None])
    with torch.no_grad():
        moved = (model(larger).logits - model(batch).logits).abs().max()
        model = Classifier(replace(model.config, norm="tokens")).eval()
        before = (model(larger).logits - model(batch).logits).abs().max()
    assert moved > 1e-2
    assert before < 1e-5


@pytest.mark.parametrize(
    ("condenser", "options"),
    [("attention", {"tokens": 4, "hidden": 8}), ("sparselearn", {"context": "none", "gate": "scale", "tokens": 4})],
)
def test_the_task_s_gradient_reaches_a_scorer_that_scales_tokens(condenser, options):
    sizes = {}
    for norm in ("pooled", "tokens"):
        torch.manual_seed(0)
        model = Classifier(ClassifierConfig(16, ("a", "b"), condenser, options, norm=norm))
        torch.manual_seed(1)
        F.cross_entropy(model(make_batch([40, 30])).logits, torch.tensor([0, 1])).backward()
        gradients = [p.grad.abs().sum() for p in model.condenser.scorer.parameters() if p.grad is not None]
        sizes[norm] = float(torch.stack(gradients).sum())
    assert sizes["pooled"] > 1e-3
    if condenser == "attention":
        assert sizes["tokens"] < 1e-3 * sizes["pooled"]


def test_torchmil_s_heads_get_tokens_without_a_norm():
    pytest.importorskip("torchmil")
    model, batch = build("none", "abmil").eval(), make_batch([9, 5])
    assert not list(model.norm.parameters())
    with torch.no_grad():
        assert torch.equal(model(batch).logits, model.head(batch).logits)


def test_the_summary_can_be_what_the_head_reads():
    model = build("slim", "summary", **SLIM).eval()
    batch = make_batch([9, 5])
    prediction = model(batch)
    assert not prediction.attention.any()
    summary = model.condenser(batch).summary
    assert torch.allclose(prediction.logits, model.head(model.norm(summary)))


def test_summary_pooling_needs_a_condenser_that_has_one():
    with pytest.raises(ConfigError, match="pooling 'summary' needs a condenser with a summary; mean has none"):
        build("mean", "summary")


STREAMING = [(name, dict(condenser_class(name).small)) for name in list_condensers() if condenser_class(name).streams]
STREAMING.append(("sparselearn", {**condenser_class("sparselearn").small, "context": "none"}))


@pytest.mark.parametrize("pooling", ["mean", "attention", "abmil"])
@pytest.mark.parametrize(("condenser", "options"), STREAMING, ids=[name for name, _ in STREAMING])
def test_a_slide_in_chunks_gets_the_prediction_of_a_call(condenser, options, pooling):
    model = build(condenser, pooling, **options).eval()
    model.scaler.measure([3 * torch.randn(100, 16) + 2])
    batch = make_batch([130])
    stream, chunks = model.stream("slide0"), []
    for rows in torch.arange(130).split(37):
        chunks.append(stream.update(batch.features[rows], batch.positions[rows]))
    got, whole = stream.finish(), model(batch)
    torch.testing.assert_close(got.logits, whole.logits.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.attention, whole.attention.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        got.condensed.tokens.features, whole.condensed.tokens.features.detach(), atol=1e-5, rtol=0
    )
    assert not got.logits.requires_grad
    assert [len(chunk.index) for chunk in chunks] == [37, 37, 37, 19]
    if model.condenser.merges:
        assert torch.equal(torch.cat([chunk.index for chunk in chunks]), whole.condensed.assignment.index)


def test_a_classifier_that_cannot_stream_says_why():
    with pytest.raises(InputError, match=r"streams in eval mode only; call model\.eval\(\) first"):
        build("mean").train().stream("slide0")
    with pytest.raises(InputError, match="fps does not stream: it needs all patches of a slide in one TokenBatch"):
        build("fps").eval().stream("slide0")
    stream = build("mean").eval().stream("slide0")
    with pytest.raises(BagError, match="mean: slide 'slide0': no patches were added"):
        stream.finish()
