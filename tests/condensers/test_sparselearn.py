"""SparseLearn: both paths step by step, every ablation, and what must not leak."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abbe.condensers import create_condenser
from abbe.condensers.sparselearn import Denoiser, SparseLearn, standardised
from abbe.errors import ConfigError, InputError
from abbe.ops import naive
from abbe.ops.soft_topk import hard_topk
from abbe.types import Condensed, TokenBatch
from builders import make_batch
from contract.training_checks import trains_in_bf16

DIM = 16


def make(**options: object) -> SparseLearn:
    torch.manual_seed(0)
    condenser = create_condenser("sparselearn", dim=DIM, **{**SparseLearn.small, **options})
    assert isinstance(condenser, SparseLearn)
    return condenser


def soft(condenser: SparseLearn, batch: TokenBatch) -> Condensed:
    torch.manual_seed(1)
    condensed: Condensed = condenser.train()(batch)
    return condensed


def scores_of(condenser: SparseLearn, batch: TokenBatch) -> Tensor:
    scores: Tensor = condenser.scorer(F.layer_norm(batch.features, (DIM,), eps=1e-8), batch.offsets).detach()
    return scores


@pytest.mark.parametrize("context", ["latent", "full", "none"])
def test_soft_path_by_its_equations(context: str) -> None:
    condenser, batch = make(context=context), make_batch([40, 1, 9])
    condenser.set_progress(0.5)
    assert float(condenser.tau) == pytest.approx((1.0 + 0.05) / 2)
    got = soft(condenser, batch)
    s = scores_of(condenser, batch).double()
    u = torch.cat([(x - x.mean()) / (x.std(correction=0) + 1e-6) for x in s.split([40, 1, 9])]) / condenser.tau.double()
    alpha = naive.soft_topk(u, [4, 4, 4], batch.offsets.tolist())
    torch.testing.assert_close(got.tokens.weight.double(), alpha, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.assignment.weight[:, 0], got.tokens.weight.detach())
    assert got.tokens.lengths.tolist() == condenser.count([40, 1, 9], soft=True) == [40, 1, 9]
    torch.manual_seed(1)
    for n in (40, 1, 9):
        torch.randperm(n)
    x = F.layer_norm(batch.features, (DIM,), eps=1e-8).double()
    noised = alpha.sqrt()[:, None] * x + (1 - alpha).sqrt()[:, None] * torch.randn(50, DIM).double()
    # The denoiser's output projections start at zero, so it starts as the identity.
    torch.testing.assert_close(got.tokens.features.double(), noised, atol=1e-3, rtol=0)


def test_hard_path_keeps_the_best_normalised_rows() -> None:
    condenser, batch = make().eval(), make_batch([40, 9])
    got = condenser(batch)
    for slide, kept, s in zip(batch, got.tokens, scores_of(condenser, batch).split([40, 9]), strict=True):
        best = s.topk(4).indices.sort().values
        assert kept.origin.tolist() == best.tolist()
        assert torch.equal(kept.features, F.layer_norm(slide.features, (DIM,), eps=1e-8)[best])
        assert kept.weight.tolist() == [1.0] * 4


def test_inference_runs_norm_and_scorer_and_nothing_else() -> None:
    condenser, batch = make(), make_batch([40])
    ran: list[str] = []
    for name, module in condenser.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))  # type: ignore[misc]
    condenser.eval()(batch)
    assert ran == ["norm", "scorer"]
    ran.clear()
    condenser.train()(batch)
    assert ran == ["norm", "scorer", "denoiser"]


def test_dropped_patches_are_inert_bit_for_bit() -> None:
    """With a pointwise scorer, changing what is dropped anyway changes no bit of the tokens."""
    condenser, batch = make(context="none").eval(), make_batch([60])
    before = condenser(batch)
    kept = before.assignment.index[:, 0] >= 0
    features = torch.where(kept[:, None], batch.features, batch.features * 1.5 + 0.01)
    after = condenser(replace(batch, features=features))
    assert torch.equal(before.assignment.index, after.assignment.index)
    assert torch.equal(before.tokens.features, after.tokens.features)


def test_gate_keeps_the_variance_whatever_alpha() -> None:
    condenser, batch = make(denoiser="none"), make_batch([4000])
    for tau in (1.0, 0.05):
        condenser.tau.fill_(tau)
        assert float(soft(condenser, batch).tokens.features.var().detach()) == pytest.approx(1, abs=0.02)


def test_a_slide_within_the_budget_passes_unchanged() -> None:
    condenser, batch = make(), make_batch([3, 1])
    got = soft(condenser, batch)
    assert got.tokens.weight.tolist() == [1.0] * 4
    assert torch.equal(got.tokens.features, F.layer_norm(batch.features, (DIM,), eps=1e-8))


@pytest.mark.parametrize("dtype", [torch.float64])
def test_diagonal_denoiser_is_attention_under_an_identity_mask(dtype: torch.dtype) -> None:
    denoiser, n, heads = Denoiser(DIM, 4).to(dtype), 11, 4
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(n, DIM, dtype=dtype)
    normed = denoiser.norm1(x)
    query, key = torch.randn(2, n, DIM, dtype=dtype)  # any values: the mask leaves one key
    q, k, v = (y.view(n, heads, -1).transpose(0, 1) for y in (query, key, denoiser.value(normed)))
    scores = (q @ k.mT / math.sqrt(DIM // heads)).masked_fill(~torch.eye(n, dtype=torch.bool), -torch.inf)
    h = x + denoiser.out((scores.softmax(-1) @ v).transpose(0, 1).reshape(n, DIM))
    expected = h + denoiser.mlp(denoiser.norm2(h))
    torch.testing.assert_close(denoiser(x, [n]), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("kind", "leaks"), [("diagonal", False), ("global", True)])
def test_only_the_global_denoiser_mixes_tokens(kind: str, leaks: bool) -> None:
    denoiser = make(denoiser=kind).denoiser
    assert denoiser is not None
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(12, DIM)
    y = x.clone()
    y[3] += torch.randn(DIM)
    moved = (denoiser(x, [7, 5]) - denoiser(y, [7, 5])).abs().amax(1) > 1e-6
    assert moved.tolist() == [leaks or row == 3 for row in range(7)] + [False] * 5


@pytest.mark.parametrize("selector", ["soft_topk", "ste", "gumbel"])
@pytest.mark.parametrize("gate", ["vp", "scale"])
@pytest.mark.parametrize("denoiser", ["diagonal", "global", "none"])
def test_every_ablation_trains_the_scorer(selector: str, gate: str, denoiser: str) -> None:
    condenser = make(selector=selector, gate=gate, denoiser=denoiser)
    got = soft(condenser, make_batch([40, 9, 1]))
    probe = torch.randn_like(got.tokens.features)
    (got.tokens.features * probe).sum().backward()
    for name, parameter in condenser.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    assert bool(condenser.scorer.leave.weight.grad.any())  # type: ignore[union-attr]


def test_layers_before_the_zero_projections_learn_from_the_second_step_on() -> None:
    condenser, batch = make(), make_batch([40, 9])
    for step in range(2):
        condenser.zero_grad()
        got = soft(condenser, batch)
        (got.tokens.features * torch.randn_like(got.tokens.features)).sum().backward()
        still = [name for name, p in condenser.named_parameters() if p.grad is not None and not p.grad.any()]
        assert all(name.startswith("denoiser.") for name in still)
        assert bool(still) == (step == 0)
        with torch.no_grad():
            for parameter in condenser.parameters():
                parameter -= 0.1 * parameter.grad  # type: ignore[operator]


def test_without_a_gate_the_scorer_learns_nothing_but_stays_in_the_graph() -> None:
    condenser, batch = make(gate="none"), make_batch([40])
    got = soft(condenser, batch)
    assert got.tokens.weight.tolist() == [1.0] * 40
    (got.tokens.features.square().sum() + (got.tokens.weight * torch.randn(40)).sum()).backward()
    for name, parameter in condenser.scorer.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_straight_through_takes_hard_values_and_soft_slopes() -> None:
    condenser, batch = make(selector="ste"), make_batch([40])
    got = soft(condenser, batch)
    kept = condenser.eval()(batch).tokens.origin
    assert got.tokens.weight.nonzero()[:, 0].tolist() == kept.tolist()
    assert set(got.tokens.weight.tolist()) == {0.0, 1.0}
    assert torch.equal(got.tokens.features[kept], F.layer_norm(batch.features, (DIM,), eps=1e-8)[kept])


def test_gumbel_noise_is_for_the_soft_path_only() -> None:
    condenser, batch = make(selector="gumbel"), make_batch([40])
    weights = [condenser.train()(batch).tokens.weight for _ in range(2)]
    assert not torch.equal(*weights)
    for weight in weights:
        assert float(weight.sum().detach()) == pytest.approx(4, rel=1e-4)
    assert torch.equal(condenser.eval()(batch).tokens.origin, condenser(batch).tokens.origin)


def test_gumbel_noise_has_its_mean_and_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal scores standardise to 0, so the input of Soft Top-K is the noise: mean 0.577, std π / √6, skewed right."""
    given: list[Tensor] = []

    def watched(u: Tensor, *arguments: object) -> Tensor:
        given.append(u.detach())
        return torch.zeros(1)

    monkeypatch.setattr("abbe.condensers.sparselearn.soft_topk", watched)
    condenser = make(context="none", selector="gumbel", tau_start=1.0)
    torch.nn.init.zeros_(condenser.scorer.leave.weight)
    soft(condenser, make_batch([20_000]))
    noise = given[0]
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.03)
    assert float(noise.std()) == pytest.approx(math.pi / math.sqrt(6), rel=0.03)
    assert float((noise - noise.mean()).pow(3).mean() / noise.std() ** 3) == pytest.approx(1.14, abs=0.25)


def test_gumbel_noise_is_added_before_the_division_by_tau() -> None:
    """The choice at a low temperature is then as random as at a high one; after it, the noise would be lost."""
    condenser, batch = make(context="none", selector="gumbel"), make_batch([200])
    quiet = hard_topk(condenser._scores(condenser.norm(batch.features), batch.offsets), [4], batch.offsets)[0].tolist()
    shared = {}
    for tau in (1.0, 0.05):
        condenser.tau.fill_(tau)
        chosen = [soft(condenser, batch).tokens.weight.detach().topk(4).indices.tolist() for _ in range(50)]
        shared[tau] = sum(len(set(quiet) & set(kept)) for kept in chosen) / 200
    assert shared[0.05] == pytest.approx(shared[1.0], abs=0.15)
    assert shared[0.05] < 0.6  # scores have a standard deviation of 1, the noise of 1.28


def test_weights_of_the_input_are_kept() -> None:
    batch = make_batch([40, 9])
    half = replace(batch, weight=torch.full_like(batch.weight, 0.5))
    for condenser, path in ((make().train(), True), (make().eval(), False)):
        whole, halved = (float(condenser(b, soft=path).tokens.weight.detach().sum()) for b in (batch, half))
        assert halved == pytest.approx(whole / 2, rel=1e-4)


def test_the_dropped_share_is_relative_to_the_input_tokens() -> None:
    slots = create_condenser("kmeans", dim=DIM, tokens=8)(make_batch([40, 9])).tokens
    condensed = make().eval()(slots)
    assert condensed.dropped.tolist() == [4, 4]
    assert float(condensed.metrics["dropped_share"]) == pytest.approx(0.5)


@pytest.mark.parametrize("heads", [1, 4])
def test_latent_scorer_by_its_equations(heads: int) -> None:
    """Latents read the tokens, tokens read the latents, both with `heads` heads, then an MLP, each with a residual."""
    scorer = make(scorer_width=8, heads=heads, layers=2).scorer.double()
    x = torch.randn(11, DIM, dtype=torch.float64)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, w = torch.zeros_like(q), 8 // heads
        for h in range(heads):
            at = slice(h * w, (h + 1) * w)
            out[:, at] = (q[:, at] @ k[:, at].T / math.sqrt(w)).softmax(1) @ v[:, at]
        return out

    def norm(part: nn.LayerNorm, rows: Tensor) -> Tensor:
        return F.layer_norm(rows, (8,), part.weight, part.bias)

    y, latents = scorer.enter(x), scorer.latents
    for block in scorer.blocks:
        q, k, v = block.qkv(norm(block.norm1, y)).chunk(3, 1)
        latents = latents + block.latent_out(attend(block.latent_q(norm(block.latent_norm1, latents)), k, v))
        keys, values = block.latent_kv(norm(block.latent_norm2, latents)).chunk(2, 1)
        y = y + block.out(attend(q, keys, values))
        y = y + block.mlp[2](F.gelu(block.mlp[0](norm(block.norm2, y))))
    expected = (norm(scorer.norm, y) @ scorer.leave.weight.T).squeeze(1)
    torch.testing.assert_close(scorer(x, torch.tensor([0, 11])).double(), expected, atol=1e-6, rtol=0)


def test_schedules_are_kept_with_the_weights() -> None:
    condenser = make(tau_start=0.5, budget_start=1.0)
    batch = make_batch([40])
    sums = []
    for fraction in (0.0, 0.5, 1.0):
        condenser.set_progress(fraction)
        sums.append(float(soft(condenser, batch).tokens.weight.sum().detach()))
    assert sums == pytest.approx([40, 4 + 36 / 2, 4], rel=1e-4)
    again = make(tau_start=0.5, budget_start=1.0)
    again.load_state_dict(condenser.state_dict())
    assert float(again.tau) == pytest.approx(0.05)
    assert float(again.progress) == 1.0
    assert float(soft(condenser, batch).metrics["tau"]) == pytest.approx(0.05)
    with pytest.raises(InputError, match=r"progress must be in \[0, 1\], got 1\.5"):
        condenser.set_progress(1.5)


def test_colder_scores_leave_less_outside_the_kept_set() -> None:
    condenser, batch = make(tokens=32), make_batch([2000])
    kept, inside = condenser.eval()(batch).tokens.origin, []
    for fraction in (0.0, 0.7, 1.0):
        condenser.set_progress(fraction)
        weight = soft(condenser, batch).tokens.weight.detach()
        inside.append(float(weight[kept].sum() / weight.sum()))
    assert inside == sorted(inside)
    assert inside[0] < 0.3 < inside[2]


def test_max_train_patches_takes_some_in_slide_order_and_counts_the_rest() -> None:
    condenser, batch = make(max_train_patches=10), make_batch([40, 7])
    got = soft(condenser, batch)
    assert got.tokens.lengths.tolist() == condenser.count([40, 7], soft=True) == [10, 7]
    assert got.tokens[0].origin.tolist() == got.tokens[0].origin.sort().values.tolist()
    assert got.dropped.tolist() == [30, 0]
    assert float(got.metrics["dropped_share"]) == pytest.approx(30 / 47)
    assert (got.assignment.index[:40, 0] >= 0).sum() == 10
    assert condenser.eval()(batch).tokens.lengths.tolist() == [4, 4]


@pytest.mark.parametrize(("cap", "expected"), [(10, [1.0, 4.0]), (20, [2.0, 4.0]), (3, [1.0, 4 * 3 / 7])])
def test_the_budget_shrinks_with_max_train_patches(cap: int, expected: list[float]) -> None:
    got = soft(make(max_train_patches=cap), make_batch([40, 7]))
    summed = [float(slide.weight.detach().sum()) for slide in got.tokens]
    assert summed == pytest.approx(expected, rel=1e-3)


def test_standardised_scores_have_a_finite_slope_where_they_do_not_vary() -> None:
    batch = make_batch([1, 5])
    scores = torch.tensor([3.0, 2, 2, 2, 2, 2], requires_grad=True)
    out = standardised(scores, batch)
    assert out.tolist() == [0.0] * 6
    out.sum().backward()
    assert bool(torch.isfinite(scores.grad).all())  # type: ignore[arg-type]


def test_a_pointwise_scorer_streams() -> None:
    condenser, batch = make(context="none").eval(), make_batch([40])
    whole, stream = condenser(batch), condenser.stream("slide0")
    for start in range(0, 40, 7):
        assert batch.positions is not None
        stream.update(batch.features[start : start + 7], batch.positions[start : start + 7])
    streamed = stream.finish()
    assert torch.equal(streamed.tokens.origin, whole.tokens.origin)
    torch.testing.assert_close(streamed.tokens.features, whole.tokens.features, atol=1e-5, rtol=0)
    assert streamed.dropped.tolist() == [36]
    with pytest.raises(InputError, match="does not stream with context='latent'"):
        make().stream("slide0")


@pytest.mark.parametrize(
    "options", [{}, {"context": "full", "denoiser": "global"}, {"context": "none", "selector": "ste"}]
)
def test_trains_in_bf16(options: dict[str, object]) -> None:
    trains_in_bf16(lambda: make(**options))


def test_refusals() -> None:
    for options, message in (
        ({"context": "latents"}, r"context must be one of latent, full, none, got 'latents'\. Did you mean 'latent'"),
        ({"gate": "vpp"}, r"gate must be one of .*, got 'vpp'\. Did you mean 'vp'"),
        ({"denoiser": "diag"}, r"denoiser must be one of .*, got 'diag'\. Did you mean 'diagonal'"),
        ({"selector": "softtopk"}, r"selector must be one of .*, got 'softtopk'\. Did you mean 'soft_topk'"),
        ({"tau_end": 2.0}, r"0 < tau_end ≤ tau_start < ∞, got tau_start=1\.0, tau_end=2\.0"),
        ({"budget_start": 3.0}, r"budget_start must be a keep rate in \(0, 1\] or None, got 3\.0"),
        ({"max_train_patches": 0}, "max_train_patches must be at least 1 or None, got 0"),
        ({"scorer_width": 9}, "a width of 9 is not divisible by heads=2"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**options)
