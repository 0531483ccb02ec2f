"""Soft Top-K: its promises for any scores, and its slow reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abbe.errors import InputError
from abbe.ops import naive
from abbe.ops.soft_topk import soft_topk
from abbe.types import offsets_of


def weights(u: Tensor, budgets: list[float], lengths: list[int]) -> Tensor:
    slide = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (u - soft_topk(u, budgets, offsets_of(lengths))[slide]).sigmoid()


scores = st.integers(1, 300).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, 2**31), st.floats(0.01, 50.0), st.integers(1, 320))
)


@settings(deadline=None, max_examples=60)
@given(scores)
def test_weights_sum_to_the_budget(case: tuple[int, int, float, int]) -> None:
    n, seed, spread, k = case
    u = spread * torch.randn(n, generator=torch.Generator().manual_seed(seed))
    alpha = weights(u, [k], [n])
    assert bool(((alpha >= 0) & (alpha <= 1)).all())
    if k >= n:
        assert torch.equal(alpha, torch.ones(n))
    else:
        assert abs(float(alpha.double().sum()) - k) <= 1e-4 * k


@settings(deadline=None, max_examples=30)
@given(st.floats(-100, 100), st.integers(0, 1000))
def test_shifting_all_scores_changes_nothing(shift: float, seed: int) -> None:
    u = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(weights(u + shift, [7], [50]), weights(u, [7], [50]), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("lengths", "budgets"), [([1], [1]), ([63], [5]), ([7, 1, 1000], [3, 1, 32]), ([9, 4], [2.5, 9])]
)
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_equals_its_reference_with_gradients(lengths: list[int], budgets: list[float], temperature: float) -> None:
    u = (torch.randn(sum(lengths), dtype=torch.float64) / temperature).requires_grad_()
    fast = weights(u, budgets, lengths)
    slow = naive.soft_topk(u, budgets, offsets_of(lengths).tolist())
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=0)
    probe = torch.randn_like(u)
    (mine,) = torch.autograd.grad((fast * probe).sum(), u)
    if slow.requires_grad:
        (theirs,) = torch.autograd.grad((slow * probe).sum(), u, allow_unused=True)
        expected = torch.zeros_like(u) if theirs is None else theirs
        torch.testing.assert_close(mine, expected, atol=1e-10, rtol=1e-8)
    else:
        assert not mine.any()


def test_gradcheck() -> None:
    u = torch.randn(12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: soft_topk(u, [3, 2], offsets_of([7, 5])), u)
    assert torch.autograd.gradcheck(lambda u: weights(u, [3, 2], [7, 5]), u)


def test_constant_scores_share_the_budget() -> None:
    alpha = weights(torch.full((8,), 3.0), [2], [8])
    torch.testing.assert_close(alpha, torch.full((8,), 0.25))


def test_a_budget_that_is_everything_gives_ones_and_a_zero_gradient() -> None:
    u = torch.randn(4, requires_grad=True)
    alpha = weights(u, [4], [4])
    assert alpha.tolist() == [1, 1, 1, 1]
    alpha.sum().backward()
    assert u.grad is not None
    assert not u.grad.any()


def test_cold_scores_give_the_hard_set() -> None:
    u = torch.randn(500) / 1e-3
    alpha = weights(u, [10], [500])
    assert set(alpha.topk(10).indices.tolist()) == set(u.topk(10).indices.tolist())
    assert float(alpha.topk(10).values.sum()) > 9.5


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"2 positive budgets are needed, got \[3.0\]"):
        soft_topk(torch.zeros(4), [3], offsets_of([2, 2]))
    with pytest.raises(InputError, match=r"positive budgets are needed, got \[0.0\]"):
        soft_topk(torch.zeros(4), [0], offsets_of([4]))
    with pytest.raises(InputError, match=r"at least one token, lengths are \[4, 0\]"):
        soft_topk(torch.zeros(4), [1, 1], offsets_of([4, 0]))
