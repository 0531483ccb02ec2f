"""Farthest points against the slow reference."""

from __future__ import annotations

import pytest
import torch

from abbe.ops import naive
from abbe.ops.fps import farthest_points


@pytest.mark.parametrize(("n", "k"), [(1, 3), (63, 1), (63, 17), (20, 20), (20, 50)])
def test_it_takes_what_the_reference_takes(n: int, k: int) -> None:
    rows = torch.randn(n, 6)
    assert farthest_points(rows, k).tolist() == naive.farthest_points(rows, k)


def test_a_rare_kind_is_found_and_equal_rows_are_taken_once() -> None:
    rows = torch.cat([torch.tensor([[1.0, 0.1]]).repeat(999, 1), torch.tensor([[-1.0, 0.2]])])
    taken = farthest_points(rows, 3)
    assert taken[1] == 999
    assert len(set(taken.tolist())) == 3


def test_zero_rows_do_no_harm() -> None:
    assert sorted(farthest_points(torch.zeros(4, 3), 4).tolist()) == [0, 1, 2, 3]
