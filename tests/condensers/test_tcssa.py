"""TC-SSA: every formula of the paper written out slot by slot, and compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from abbe.condensers import create_condenser
from abbe.condensers.tcssa import TCSSA, SlotExperts
from abbe.errors import ConfigError
from abbe.types import Bag, TokenBatch
from builders import make_batch

DIM = 16


@pytest.fixture(autouse=True)
def _values_only() -> Iterator[None]:
    with torch.no_grad():
        yield


def written_out(condenser: TCSSA, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(tokens [K, D], mass [K], L_aux) of one slide in float64, by the paper's equations."""
    x = x.double()
    w = condenser.gate.weight.double()
    k = len(w)
    z = x @ w.T
    p = z.softmax(1)
    m = torch.zeros_like(p)
    for j in range(len(x)):
        for slot in p[j].argsort(descending=True)[: min(2, k)]:
            m[j, slot] = 1
    tilde = m * p
    tokens = []
    e = condenser.experts
    for slot in range(k):
        if m[:, slot].sum() == 0:
            tokens.append(torch.zeros(DIM, dtype=torch.float64))
            continue
        c = (tilde[:, slot, None] * x).sum(0) / (tilde[:, slot].sum() + 1e-9)
        hidden = F.gelu(c @ e.weight1[slot].double() + e.bias1[slot].double())
        out = hidden @ e.weight2[slot].double() + e.bias2[slot].double()
        tokens.append(c + F.layer_norm(out, (DIM,), e.scale[slot].double(), e.shift[slot].double()))
    share, f = p.mean(0), m.mean(0)
    switch = k * float((share * f).sum())
    entropy = -float((share * (share + 1e-8).log()).sum())
    uneven = 1 - entropy / math.log(k) if k > 1 else 0.0
    z_loss = 1e-4 * float(z.logsumexp(1).mean()) ** 2
    return torch.stack(tokens), tilde.sum(0), switch + 0.5 * uneven + z_loss


@pytest.mark.parametrize("slots", [1, 2, 5, 32])
@pytest.mark.parametrize("n", [1, 7, 63])
def test_tokens_and_losses_are_the_paper_s(slots: int, n: int) -> None:
    condenser = create_condenser("tcssa", dim=DIM, tokens=slots, hidden=8, aux_weight=0.3).eval()
    assert isinstance(condenser, TCSSA)
    batch = make_batch([n, 5], dim=DIM)
    condensed = condenser(batch)
    auxiliary = []
    for slide, got in zip(batch, condensed.tokens, strict=True):
        tokens, mass, aux = written_out(condenser, slide.features)
        torch.testing.assert_close(got.features.double(), tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.mass.double(), mass, atol=1e-5, rtol=1e-5)
        assert torch.equal(got.mask, mass > 0)
        auxiliary.append(aux)
    expected = 0.3 * sum(auxiliary) / 2
    assert float(condensed.losses["aux"]) == pytest.approx(expected, rel=1e-5)
    assert float(condensed.metrics["aux"]) == pytest.approx(expected / 0.3, rel=1e-5)


def test_uniform_routing_scores_two_and_that_is_not_the_minimum() -> None:
    """K Σ P_i f_i is 2 for uniform routing, and K/(K−1) if one slot is every patch's second choice with no weight."""
    k = 4
    condenser = create_condenser("tcssa", dim=k, tokens=k, hidden=4).eval()
    assert isinstance(condenser, TCSSA)
    x = torch.eye(k)[:3].repeat(10, 1) * 100.0
    with torch.no_grad():
        condenser.gate.weight.copy_(torch.eye(k))
        condenser.gate.weight[3] = 0.5  # slot 3: second choice of every patch, with almost no probability
    batch = make_batch([30], dim=k)
    batch.features.copy_(x)
    assert float(condenser(batch).metrics["switch"]) == pytest.approx(k / (k - 1), rel=1e-3)
    with torch.no_grad():
        condenser.gate.weight.zero_()
    assert float(condenser(batch).metrics["switch"]) == pytest.approx(2, rel=1e-6)
    assert float(condenser(batch).metrics["entropy"]) == pytest.approx(0, abs=1e-6)


def test_noise_is_for_training_and_dropout_too() -> None:
    condenser = create_condenser("tcssa", dim=DIM, tokens=4, hidden=8, dropout=0.0)
    batch = make_batch([40], dim=DIM)
    assert not torch.equal(condenser.train()(batch).tokens.features, condenser(batch).tokens.features)
    assert torch.equal(condenser.eval()(batch).tokens.features, condenser(batch).tokens.features)
    quiet = create_condenser("tcssa", dim=DIM, tokens=4, hidden=8, dropout=0.0, noise=0.0).train()
    assert torch.equal(quiet(batch).tokens.features, quiet(batch).tokens.features)


def test_noise_has_the_stated_spread() -> None:
    condenser = create_condenser("tcssa", dim=DIM, tokens=2, hidden=8, dropout=0.0, aux_weight=1.0)
    assert isinstance(condenser, TCSSA)
    with torch.no_grad():
        condenser.gate.weight.zero_()
    # With clean logits of 0 and two slots, log(P1/P2) of a patch is the difference of two noises: std 0.1·√2.
    weight = condenser.train()(make_batch([20_000], dim=DIM)).assignment
    first = torch.where(weight.index[:, 0] == 0, weight.weight[:, 0], weight.weight[:, 1])
    assert float((first / (1 - first)).log().std()) == pytest.approx(0.1 * math.sqrt(2), rel=0.03)


def test_bf16_features_get_float32_logits() -> None:
    condenser = create_condenser("tcssa", dim=DIM, tokens=8, hidden=8).eval()
    batch = make_batch([500], dim=DIM).to(dtype=torch.bfloat16)
    exact = condenser(batch.to(dtype=torch.float32)).assignment
    low = condenser(batch).assignment
    assert torch.equal(exact.index, low.index)
    torch.testing.assert_close(exact.weight, low.weight, atol=1e-6, rtol=0)


def test_shared_experts_and_gate_bias_are_one_argument_away() -> None:
    own = create_condenser("tcssa", dim=DIM, tokens=4, hidden=8)
    shared = create_condenser("tcssa", dim=DIM, tokens=4, hidden=8, shared_experts=True, gate_bias=True)
    assert isinstance(own, TCSSA)
    assert isinstance(shared, TCSSA)
    assert isinstance(shared.experts, SlotExperts)
    assert own.experts.weight1.shape[0] == 4
    assert shared.experts.weight1.shape[0] == 1
    assert own.gate.bias is None
    assert shared.gate.bias is not None
    shared.eval()(make_batch([5], dim=DIM))


def test_slots_must_be_a_count() -> None:
    with pytest.raises(ConfigError, match=r"condenser 'tcssa': tokens must be int, got 0\.5"):
        create_condenser("tcssa", dim=DIM, tokens=0.5)
    with pytest.raises(ConfigError, match=r"tokens must be an int, the number of slots, got 0\.5"):
        TCSSA(dim=DIM, tokens=0.5)  # type: ignore[arg-type]


def test_defaults_are_the_paper_s() -> None:
    stated = {"tokens": 32, "top_k": 2, "noise": 0.1, "hidden": 512, "dropout": 0.25, "aux_weight": 0.1}
    ablations = {"shared_experts": False, "gate_bias": False, "dead_slots": "mask"}
    assert create_condenser("tcssa", dim=DIM).config == {"dim": DIM, **stated, **ablations}


def test_a_slot_without_patches_is_masked_or_its_expert_of_zero() -> None:
    batch = make_batch([1, 1], dim=DIM)  # one patch reaches two of four slots
    tokens = {}
    for dead in ("mask", "constant"):
        torch.manual_seed(0)
        condenser = create_condenser("tcssa", dim=DIM, tokens=4, hidden=8, dead_slots=dead).eval()
        tokens[dead] = condenser(batch).tokens
    taken = tokens["mask"].mask
    assert taken.reshape(2, 4).sum(1).tolist() == [2, 2]
    assert tokens["constant"].mask.all()
    assert not tokens["mask"].features[~taken].any()
    assert torch.equal(tokens["mask"].features[taken], tokens["constant"].features[taken])
    constant = condenser.experts(torch.zeros(1, 4, DIM)).expand(2, -1, -1).reshape(8, DIM)
    torch.testing.assert_close(tokens["constant"].features[~taken], constant[~taken])
    assert not tokens["constant"].mass[~taken].any()
    with pytest.raises(ConfigError, match=r"dead_slots must be .*'drop'"):
        create_condenser("tcssa", dim=DIM, dead_slots="drop")


def test_experts_drop_out_in_training_only() -> None:
    batch = make_batch([40], dim=DIM)
    condenser = create_condenser("tcssa", dim=DIM, tokens=4, hidden=8, noise=0.0, dropout=0.5)
    assert not torch.equal(condenser.train()(batch).tokens.features, condenser(batch).tokens.features)
    assert torch.equal(condenser.eval()(batch).tokens.features, condenser(batch).tokens.features)


def test_a_patch_of_mass_two_is_that_patch_twice() -> None:
    batch = make_batch([6], dim=DIM)
    condenser = create_condenser("tcssa", dim=DIM, tokens=3, hidden=8).eval()
    twice = TokenBatch.pack([Bag(torch.cat([batch.features, batch.features[2:3]]), None, None, "slide0")])
    heavy, weighty = (torch.ones(6).index_fill(0, torch.tensor([2]), x) for x in (2.0, 4.0))
    expected = condenser(twice)
    for mass, weight in ((heavy, torch.ones(6)), (weighty, torch.ones(6).index_fill(0, torch.tensor([2]), 0.5))):
        got = condenser(replace(batch, mass=mass, weight=weight))
        torch.testing.assert_close(got.tokens.features, expected.tokens.features)
        torch.testing.assert_close(got.tokens.mass, expected.tokens.mass)
        for name, loss in expected.losses.items():
            torch.testing.assert_close(got.losses[name], loss)
