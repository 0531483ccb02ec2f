"""Merging against the slow reference, and the curve that orders its windows."""

from __future__ import annotations

import pytest
import torch

from abbe.ops import naive
from abbe.ops.hilbert import hilbert_index
from abbe.ops.merge import merge_to


@pytest.mark.parametrize(
    ("n", "k", "window"), [(1, 1, 4), (63, 5, 16), (63, 32, 1024), (40, 39, 8), (33, 1, 8), (9, 20, 4)]
)
def test_groups_are_those_of_the_reference(n: int, k: int, window: int) -> None:
    rows, amounts = torch.randn(n, 6, dtype=torch.float64), torch.rand(n, dtype=torch.float64) + 0.5
    got = merge_to(rows, amounts, k, window=window)
    assert got.tolist() == naive.merge_to(rows, amounts.tolist(), k, window)
    assert sorted(set(got.tolist())) == list(range(min(n, k)))


def test_similar_neighbours_are_merged() -> None:
    kinds = torch.eye(4).repeat_interleave(25, 0) + torch.randn(100, 4) * 0.01
    group = merge_to(kinds, torch.ones(100), 4)
    for part in group.split(25):
        assert len(set(part.tolist())) == 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_curve_visits_every_cell_in_order(bits: int) -> None:
    side = 2**bits
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    along = places[hilbert_index(places, bits).argsort()]
    assert [(int(x), int(y)) for x, y in along] == naive.hilbert_curve(bits)
    assert bool(((along[1:] - along[:-1]).abs().sum(1) == 1).all())


def test_the_curve_does_not_depend_on_a_shift() -> None:
    places = torch.rand(200, 2) * 50
    assert torch.equal(hilbert_index(places), hilbert_index(places.double() + 1e4))
    assert hilbert_index(torch.tensor([[3.0, 4.0]])).tolist() == [0]
