"""k-means: one step against the slow reference, seeds that spread, and the descent of the objective."""

from __future__ import annotations

import torch

from abbe.ops import naive
from abbe.ops.kmeans import kmeans, nearest_centre


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(rows: torch.Tensor, centres: torch.Tensor) -> float:
    return float(torch.cdist(rows, centres).min(1).values.square().sum())


def test_one_step_is_lloyd_s() -> None:
    rows = torch.randn(63, 5)
    seeds = kmeans(rows, 7, generator=generator(), steps=0)
    nearest, moved = naive.kmeans_step(rows, seeds)
    assert nearest_centre(rows, seeds).tolist() == nearest
    torch.testing.assert_close(kmeans(rows, 7, generator=generator(), steps=1), moved)


def test_it_descends_and_stops_when_nothing_changes() -> None:
    rows = torch.randn(500, 4)
    found = [objective(rows, kmeans(rows, 9, generator=generator(), steps=s)) for s in (0, 1, 5, 200)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]
    settled = kmeans(rows, 9, generator=generator(), steps=200)
    torch.testing.assert_close(naive.kmeans_step(rows, settled)[1], settled)


def test_seeds_are_in_every_well_separated_cluster() -> None:
    """k-means++ draws by squared distance, so distant clusters get a seed each; uniform draws usually miss one."""
    centres = torch.eye(6) * 100
    rows = (centres[:, None] + torch.randn(6, 20, 6) * 0.1).flatten(0, 1)
    for seed in range(20):
        seeds = kmeans(rows, 6, generator=generator(seed), steps=0)
        assert sorted(nearest_centre(seeds, centres).tolist()) == list(range(6))


def test_equal_rows_and_more_centres_than_rows() -> None:
    assert kmeans(torch.ones(5, 3), 4, generator=generator()).shape == (4, 3)
    assert kmeans(torch.randn(3, 2), 10, generator=generator()).shape == (3, 2)
    assert nearest_centre(torch.ones(5, 3), torch.ones(4, 3)).tolist() == [0] * 5
