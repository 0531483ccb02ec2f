"""Ops against their slow truth: values and gradients, at odd lengths, on packed slides."""

from __future__ import annotations

import pytest
import torch

from abbe.ops import naive
from abbe.ops.routing import routed_mean
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


def test_weighted_sums_a_slide() -> None:
    rows, weight = torch.randn(5, 3), torch.rand(5)
    got = segment_weighted_sum(rows, weight, offsets_of([2, 0, 3]))
    expected = segment_sum(rows * weight[:, None], torch.tensor([0, 0, 2, 2, 2]), 3)
    torch.testing.assert_close(got, expected)


def test_segment_softmax_takes_large_logits() -> None:
    out = segment_softmax(torch.tensor([1e4, 1e4, -1e4]), torch.tensor([0, 0, 0]), 1)
    assert out.tolist() == [0.5, 0.5, 0.0]
