"""Rotary positions against complex multiplication, and what they promise."""

from __future__ import annotations

import pytest
import torch

from abbe.errors import InputError
from abbe.ops import naive
from abbe.ops.rope2d import rope2d, rotations


@pytest.mark.parametrize("width", [4, 8, 48])
def test_equals_complex_multiplication(width: int) -> None:
    x, positions = torch.randn(7, 2, width), torch.rand(7, 2) * 30
    got = rope2d(x, *rotations(positions, width))
    torch.testing.assert_close(got.double(), naive.rope2d(x, positions), atol=1e-5, rtol=0)


def test_gradient_is_the_turn_back() -> None:
    x = torch.randn(5, 2, 8, dtype=torch.float64, requires_grad=True)
    turn = rotations(torch.rand(5, 2) * 9, 8)
    probe = torch.randn_like(x)
    (grad,) = torch.autograd.grad((rope2d(x, *turn) * probe).sum(), x)
    torch.testing.assert_close(grad, rope2d(probe, turn[0], -turn[1]), atol=1e-12, rtol=0)


def test_products_depend_on_differences_only_axis_by_axis() -> None:
    q, k = torch.randn(1, 1, 48), torch.randn(1, 1, 48)

    def product(a: list[float], b: list[float]) -> float:
        turned = [rope2d(x, *rotations(torch.tensor([p]), 48)) for x, p in ((q, a), (k, b))]
        return float((turned[0] * turned[1]).sum())

    here = product([3.0, 5.0], [1.0, 2.5])
    assert product([103.0, 45.0], [101.0, 42.5]) == pytest.approx(here, abs=1e-3)
    assert product([3.0, 5.0], [1.5, 2.5]) != pytest.approx(here, abs=1e-3)
    assert product([3.0, 5.0], [1.0, 2.0]) != pytest.approx(here, abs=1e-3)


def test_the_origin_is_left_alone() -> None:
    x = torch.randn(3, 2, 8)
    assert torch.equal(rope2d(x, *rotations(torch.zeros(3, 2), 8)), x)


def test_head_width_must_be_a_multiple_of_four() -> None:
    with pytest.raises(InputError, match=r"divisible by 4 \(.*\), got 6"):
        rotations(torch.zeros(1, 2), 6)
