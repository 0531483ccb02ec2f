"""SLIM: schedule, routers, what its auxiliary outputs train, and its size."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from abbe.condensers import create_condenser
from abbe.condensers.slim import Cropr, Slim, keep_schedule
from abbe.errors import ConfigError, MissingCoordinates
from builders import make_batch
from contract.training_checks import trains_in_bf16

DIM = 16


def make(**options: object) -> Slim:
    condenser = create_condenser("slim", dim=DIM, **{**Slim.small, **options})
    assert isinstance(condenser, Slim)
    return condenser.eval()


def test_schedule_of_a_keep_rate_is_the_paper_s() -> None:
    m, expected = 17_182, []
    for _ in range(5):
        m = math.floor(0.2 ** (1 / 5) * m + 1e-9)
        expected.append(m)
    assert keep_schedule(17_182, 0.2, 5) == expected
    assert expected[-1] == pytest.approx(0.2 * 17_182, rel=2e-3)
    assert keep_schedule(10, 1.0, 5) == [10] * 5
    assert keep_schedule(3, 0.01, 5) == [1] * 5


@pytest.mark.parametrize(("n", "k"), [(100_000, 32), (40, 4), (7, 32), (33, 32), (1, 1), (1000, 999)])
def test_schedule_of_a_count_falls_evenly_and_ends_exactly(n: int, k: int) -> None:
    plan = keep_schedule(n, k, 5)
    assert plan[-1] == min(k, n)
    assert plan == sorted(plan, reverse=True)
    assert all(min(k, n) <= m <= n for m in plan)
    assert plan[0] == max(min(k, n), math.floor(min(1, k / n) ** (1 / 5) * n + 1e-9))


def test_one_keep_rate_or_one_per_slide_at_call_time() -> None:
    condenser, batch = make(tokens=0.5), make_batch([40, 9, 1])
    assert condenser(batch).tokens.lengths.tolist() == condenser.count([40, 9, 1])
    assert condenser(batch, tokens=0.2).tokens.lengths.tolist() == [keep_schedule(n, 0.2, 2)[-1] for n in (40, 9, 1)]
    assert condenser(batch, tokens=[3, 1.0, 7]).tokens.lengths.tolist() == [3, 9, 1]


def test_parameters_are_the_paper_s_66_million() -> None:
    with torch.device("meta"):
        condenser = create_condenser("slim", dim=768)
    parameters = sum(p.numel() for p in condenser.parameters())
    assert 66e6 <= parameters <= 67.5e6
    assert isinstance(condenser, Slim)
    assert not any("key" in name for name, _ in condenser.named_parameters())
    assert sum(p.numel() for p in condenser.croppers[0].parameters()) == pytest.approx(4.72e6, rel=2e-3)


def test_cropr_by_its_equations() -> None:
    cropr = Cropr(DIM, 3)
    tokens = make_batch([12, 5])
    kept, read = cropr.keep(tokens, [4, 9]), cropr.read(tokens)
    q = cropr.queries.detach().double()
    for b, slide in enumerate(tokens):
        x = slide.features.double()
        a = (q @ x.T).sum(0)
        best = a.argsort(descending=True)[: (4, 9)[b]].sort().values
        assert kept[b].tolist() == best.tolist()
        z = ((q @ x.T) / math.sqrt(DIM)).softmax(1) @ x
        refined = z + cropr.double().mlp(cropr.norm(z))
        torch.testing.assert_close(read[b].double(), refined.mean(0), atol=1e-5, rtol=0)
        cropr.float()


def test_auxiliary_outputs_train_the_routers_and_nothing_else() -> None:
    condenser = make().train()
    condensed = condenser(make_batch([30, 8]), predictions=True)
    assert set(condensed.predictions) == {"cropr/1", "cropr/2"}
    assert condensed.predictions["cropr/1"].shape == (2, DIM)
    torch.stack([p.square().sum() for p in condensed.predictions.values()]).sum().backward()
    for name, parameter in condenser.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name


def test_the_aggregator_runs_only_when_predictions_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    read = Cropr.read
    monkeypatch.setattr(Cropr, "read", lambda self, tokens: calls.append(len(tokens)) or read(self, tokens))
    for condenser in (make().train(), make().eval()):
        condenser(make_batch([30, 8]))
        assert calls == []
    make().eval()(make_batch([30, 8]), predictions=True)
    assert calls == [2, 2]


def test_the_task_s_loss_does_not_reach_the_routers() -> None:
    condenser = make().train()
    condensed = condenser(make_batch([30]))
    assert condensed.summary is not None
    condensed.summary.square().sum().backward()
    assert all(p.grad is None for p in condenser.croppers.parameters())
    assert condenser.encoder.project.weight.grad is not None


def test_routers_decide_which_patches_are_kept() -> None:
    """A query keeps the patches that point in its direction after the first block."""
    condenser, batch = make(layers=2), make_batch([40])
    hidden = []
    with torch.no_grad():
        condenser.encoder(batch, between=lambda _, tokens: hidden.append(tokens.features))
        before = set(condenser(batch).tokens.origin.tolist())
        condenser.croppers[0].queries.neg_()  # type: ignore[union-attr,operator]
        after = condenser(batch)
        scores = hidden[0] @ condenser.croppers[0].queries[0]  # type: ignore[index]
    assert not before & set(after.tokens.origin.tolist())
    assert after.tokens.origin.tolist() == scores.topk(4).indices.sort().values.tolist()


def test_dropped_patches_leave_traces_in_those_that_are_kept() -> None:
    """Unlike in a selection of raw patches, they were attended to before they were dropped."""
    condenser, batch = make(), make_batch([40])
    condensed = condenser(batch)
    dropped = int((condensed.assignment.index[:, 0] < 0).nonzero()[0])
    features = batch.features.clone()
    features[dropped] += 0.01
    again = condenser(replace(batch, features=features))
    assert not torch.equal(condensed.summary, again.summary)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}])
def test_trains_in_bf16(options: dict[str, object]) -> None:
    trains_in_bf16(lambda: make(**options))


def test_refusals() -> None:
    with pytest.raises(MissingCoordinates, match="slim needs positions"):
        make()(replace(make_batch([5]), positions=None))
    with pytest.raises(ConfigError, match="layers must be at least 2, got 1"):
        make(layers=1)
    with pytest.raises(ConfigError, match="queries must be at least 1, got 0"):
        make(queries=0)
    with pytest.raises(ConfigError, match=r"got 'covr'\. Did you mean 'cover'"):
        make(segments="covr")
    with pytest.raises(ConfigError, match="tokens must be at least 1, got 0"):
        make(tokens=0)
