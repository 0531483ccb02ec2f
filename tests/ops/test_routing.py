"""Routing against its slow reference: values and gradients, at odd lengths, on packed slides."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abbe.ops import naive, routing
from abbe.ops.routing import Routed, gated_mean, routed_mean
from abbe.ops.segments import segment_mean, segment_softmax, segment_sum, segment_weighted_sum
from abbe.types import offsets_of


@pytest.mark.parametrize("lengths", [[1], [7, 1, 63], [2, 33]])
@pytest.mark.parametrize(("slots", "top_k"), [(1, 2), (3, 1), (5, 2), (4, 4)])
def test_routed_mean_and_its_gradients(lengths: list[int], slots: int, top_k: int) -> None:
    t, d = sum(lengths), 6
    offsets = offsets_of(lengths)
    x = torch.randn(t, d, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(t, slots, dtype=torch.float64, requires_grad=True)
    amount = torch.rand(t, dtype=torch.float64)
    amount[::3] = 0
    got = routed_mean(x, logits, offsets, amount_T=amount, top_k=top_k)
    centres, mass = naive.routed_mean(x, logits, offsets.tolist(), amount, top_k)
    torch.testing.assert_close(got.centres, centres)
    torch.testing.assert_close(got.mass, mass)
    probe = torch.randn_like(centres)
    slow = torch.autograd.grad((centres * probe).sum() + mass.square().sum(), [x, logits])
    fast = torch.autograd.grad((got.centres * probe).sum() + got.mass.square().sum(), [x, logits])
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 rows, which slides of 63 or 1,000 tokens fill many times and end within."""
    monkeypatch.setattr(routing, "CHUNK", 7)


def dense(x: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, amount: torch.Tensor, offsets: torch.Tensor) -> list:
    """[centres, mass, share, log_normalizer] by ordinary autograd, nothing in chunks."""
    logits = x @ gate.T + bias
    p = logits.softmax(1)
    kept = torch.zeros_like(p).scatter(1, p.topk(2, 1).indices, 1.0) * p * amount[:, None]
    out = []
    for start, stop in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        part, a = slice(start, stop), amount[start:stop]
        mass = kept[part].sum(0)
        centre = kept[part].T @ x[part] / (mass[:, None] + 1e-9)
        out.append((centre, mass, a @ p[part] / a.sum(), a @ logits[part].logsumexp(1) / a.sum()))
    return [torch.stack(parts) for parts in zip(*out, strict=True)]


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("lengths", [[63], [1000], [1, 5, 1, 63, 7, 7, 2]])
def test_gated_mean_and_all_its_gradients_are_those_of_dense_autograd(lengths: list[int]) -> None:
    t, k, d, offsets = sum(lengths), 6, 5, offsets_of(lengths)
    leaves = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((t, d), (k, d), (k,))]
    amount = torch.rand(t, dtype=torch.float64) + 0.1
    amount[1::3] = 0.0  # these have no effect, but the gradient with respect to their amounts is tested too
    leaves.append(amount.requires_grad_())
    x, gate, bias, _ = leaves
    got = gated_mean(x, gate, bias, offsets, amount_T=amount)
    fast_values = [got.centres, got.mass, got.share, got.log_normalizer]
    slow_values = dense(x, gate, bias, amount, offsets)
    probes = [torch.randn_like(value) for value in slow_values]
    for fast, slow in zip(fast_values, slow_values, strict=True):
        torch.testing.assert_close(fast, slow)
    fast_gradients, slow_gradients = (
        torch.autograd.grad(sum((v * p).sum() for v, p in zip(values, probes, strict=True)), leaves)  # type: ignore[arg-type]
        for values in (fast_values, slow_values)
    )
    for fast, slow in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=1e-6)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_gradcheck_in_float64(noise: float) -> None:
    """Also with noise: backward must draw the numbers that forward drew."""
    offsets = offsets_of([9, 4])
    x, gate, bias, amount = (
        torch.randn(13, 3, dtype=torch.float64),
        3 * torch.randn(4, 3, dtype=torch.float64),
        torch.randn(4, dtype=torch.float64),
        torch.rand(13, dtype=torch.float64) + 0.1,
    )

    def run(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(5)
        got = gated_mean(*leaves[:3], offsets, amount_T=leaves[3], noise=noise)  # type: ignore[arg-type]
        return got.centres, got.mass, got.share, got.log_normalizer

    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in (x, gate, bias, amount)])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(0, 2**31),
)
def test_properties(lengths: list[int], k: int, top_k: int, dtype: torch.dtype, seed: int) -> None:
    """Slides do not see each other; weights are the largest probabilities; what is routed adds up to the mass."""
    torch.manual_seed(seed)
    offsets, x = offsets_of(lengths), torch.randn(sum(lengths), 4).to(dtype)
    gate, amount = torch.randn(k, 4), torch.rand(sum(lengths)) * (torch.rand(sum(lengths)) > 0.3)
    got = gated_mean(x, gate, None, offsets, amount_T=amount, top_k=top_k)
    p = (x.float() @ gate.T).softmax(1)
    expected = p.topk(min(top_k, k), 1).values * (amount > 0)[:, None]
    torch.testing.assert_close(got.weight.sort(1).values, expected.sort(1).values)
    routed = segment_sum(
        (got.weight * amount[:, None]).sum(1),
        torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        len(lengths),
    )
    torch.testing.assert_close(got.mass.sum(1), routed)
    b = seed % len(lengths)
    rows = slice(int(offsets[b]), int(offsets[b + 1]))
    alone = gated_mean(x[rows], gate, None, offsets_of([lengths[b]]), amount_T=amount[rows], top_k=top_k)
    torch.testing.assert_close(alone.centres[0], got.centres[b], atol=1e-5, rtol=1e-5)
    assert torch.equal(alone.taken[0], got.taken[b])
    assert not got.centres[~got.taken].any()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(1, 4),
    st.floats(-50, 50),
    st.integers(0, 2**31),
)
def test_shifting_and_constant_logits(lengths: list[int], k: int, top_k: int, shift: float, seed: int) -> None:
    """A constant added to all of a token's logits moves the normalizer alone; equal logits give each route 1 / K."""
    torch.manual_seed(seed)
    offsets, t = offsets_of(lengths), sum(lengths)
    x, logits, ones = torch.randn(t, 3).double(), torch.randn(t, k).double(), torch.ones(t).double()
    plain, moved = (routed_mean(x, z, offsets, amount_T=ones, top_k=top_k) for z in (logits, logits + shift))
    for name in ("centres", "mass", "weight", "share"):
        torch.testing.assert_close(getattr(moved, name), getattr(plain, name), atol=1e-9, rtol=1e-9)
    assert torch.equal(moved.index, plain.index)
    torch.testing.assert_close(moved.log_normalizer, plain.log_normalizer + shift)
    level = routed_mean(x, torch.full_like(logits, shift), offsets, amount_T=ones, top_k=top_k)
    torch.testing.assert_close(level.weight, torch.full_like(level.weight, 1 / k))
    torch.testing.assert_close(level.share, torch.full_like(level.share, 1 / k))
    torch.testing.assert_close(level.mass.sum(1), torch.tensor(lengths).double() * min(top_k, k) / k)


def test_many_slides_over_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """More slides in a chunk than two bytes can number the slots of, and sums over routes in steps of a few rows."""
    monkeypatch.setattr("abbe.ops.routing.FINISH", 700)
    lengths = [1] * 1200 + [37, 2, 800]
    offsets, x, gate = offsets_of(lengths), torch.randn(sum(lengths), 4), torch.randn(32, 4)
    amount = torch.rand(len(x)) * (torch.arange(len(x)) % 5 > 0)
    got = gated_mean(x, gate, None, offsets, amount_T=amount)
    for b in (0, 1, 699, 700, 1199, 1200, 1201, 1202):
        rows = slice(int(offsets[b]), int(offsets[b + 1]))
        alone = gated_mean(x[rows], gate, None, offsets_of([lengths[b]]), amount_T=amount[rows])
        for name in ("centres", "mass", "share", "chosen", "log_normalizer"):
            torch.testing.assert_close(getattr(got, name)[b], getattr(alone, name)[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(got.index[rows], alone.index)


def test_noise_is_what_one_draw_of_all_logits_gives_and_clean_logits_stay_clean() -> None:
    x, gate, offsets, ones = torch.randn(5000, 4), torch.randn(8, 4), offsets_of([5000]), torch.ones(5000)
    torch.manual_seed(3)
    got = gated_mean(x, gate, None, offsets, amount_T=ones, noise=0.5)
    torch.manual_seed(3)
    clean = x @ gate.T
    expected = routed_mean(x, clean + 0.5 * torch.randn_like(clean), offsets, amount_T=ones)
    assert torch.equal(got.index, expected.index)
    torch.testing.assert_close(got.centres, expected.centres)
    torch.testing.assert_close(got.log_normalizer, clean.logsumexp(1).mean(0, keepdim=True))


def saved_bytes(routed: Routed) -> int:
    tensors = {t.data_ptr(): t.nbytes for t in routed.centres.grad_fn.saved_tensors if t is not None}  # type: ignore[union-attr]
    return sum(tensors.values())


def test_what_is_saved_for_backward_does_not_grow_with_the_slots() -> None:
    """Besides the inputs, two indices per token, which are returned anyway."""
    n, d = 4000, 8
    x, ones = torch.randn(n, d), torch.ones(n)
    saved = {}
    for k in (4, 64):
        gate = torch.randn(k, d, requires_grad=True)
        routed = gated_mean(x, gate, None, offsets_of([n]), amount_T=ones)
        given_bytes = x.nbytes + ones.nbytes + gate.nbytes
        saved[k] = saved_bytes(routed) - given_bytes - routed.centres.nbytes - 2 * routed.mass.nbytes - 8
        del routed
        gc.collect()
    assert saved[4] == saved[64] == 8 * n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_sums_are_near_float64(dtype: torch.dtype) -> None:
    x, gate = torch.randn(30_000, 64).to(dtype), torch.randn(32, 64) / 8
    got = gated_mean(x, gate, None, offsets_of([len(x)]), amount_T=torch.ones(len(x)))
    p = (x.double() @ gate.double().T).softmax(1)
    kept = torch.zeros_like(p).scatter(1, got.index.long(), 1.0) * p
    exact = kept.T @ x.double() / kept.sum(0)[:, None]
    assert float((got.centres - exact).norm() / exact.norm()) < 2e-6


def test_statistics_of_routing() -> None:
    logits = torch.randn(50, 6)
    got = routed_mean(torch.randn(50, 3), logits, offsets_of([20, 30]), amount_T=torch.ones(50))
    torch.testing.assert_close(got.share.sum(1), torch.ones(2))
    torch.testing.assert_close(got.chosen.sum(1), torch.full((2,), 2.0))
    torch.testing.assert_close(got.share[1], logits[20:].softmax(1).mean(0))


def test_segments() -> None:
    values, slide = torch.tensor([1.0, 2.0, -1.0, 0.5]), torch.tensor([0, 0, 2, 2])
    assert segment_sum(values, slide, 3).tolist() == [3.0, 0.0, -0.5]
    assert segment_mean(values, torch.tensor([1.0, 3.0, 0.0, 0.0]), slide, 3).tolist() == [1.75, 0.0, 0.0]
    expected = naive.segment_softmax(values.tolist(), [0, 2, 2, 4])
    torch.testing.assert_close(segment_softmax(values, slide, 3), torch.tensor(expected))
    masked = torch.tensor([1.0, -torch.inf, -torch.inf, -torch.inf])
    assert segment_softmax(masked, slide, 3).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_weighted_sums_of_slides() -> None:
    rows, weight = torch.randn(5, 3), torch.rand(5)
    got = segment_weighted_sum(rows, weight, offsets_of([2, 0, 3]))
    expected = segment_sum(rows * weight[:, None], torch.tensor([0, 0, 2, 2, 2]), 3)
    torch.testing.assert_close(got, expected)


def test_segment_softmax_takes_large_logits() -> None:
    out = segment_softmax(torch.tensor([1e4, 1e4, -1e4]), torch.tensor([0, 0, 0]), 1)
    assert out.tolist() == [0.5, 0.5, 0.0]
