"""What each baseline keeps, on bags with a known answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from abbe.condensers import create_condenser
from abbe.errors import BagError, InputError, MissingCoordinates
from abbe.types import Bag, TokenBatch
from builders import make_batch

EACH = 36


def kinds(dim: int = 16) -> TokenBatch:
    """One slide of four kinds of patches, 6 × 6 of each in a corner of the slide, far apart in feature space."""
    generator = torch.Generator().manual_seed(0)
    features = 10 * torch.eye(4, dim).repeat_interleave(EACH, 0) + 0.1 * torch.randn(4 * EACH, dim, generator=generator)
    corners = torch.tensor([[0, 0], [0, 6], [6, 6], [6, 0]]).repeat_interleave(EACH, 0)
    within = torch.cartesian_prod(torch.arange(6), torch.arange(6)).repeat(4, 1)
    return TokenBatch.pack([Bag(features, (corners + within) * 256.0, 256.0, "slide")])


def test_uniform_takes_equal_steps_from_the_first_row_to_the_last() -> None:
    kept = create_condenser("uniform", dim=16, tokens=4)(make_batch([10, 2, 1])).tokens
    assert [slide.origin.tolist() for slide in kept] == [[0, 3, 6, 9], [0, 1], [0]]


@pytest.mark.parametrize("name", ["kmeans", "merge"])
def test_clusters_are_the_kinds(name: str) -> None:
    batch = kinds()
    condensed = create_condenser(name, dim=16, tokens=4)(batch)
    for part in condensed.assignment.index[:, 0].split(EACH):
        assert len(set(part.tolist())) == 1
    assert condensed.tokens.mass.tolist() == [EACH] * 4
    first = condensed.assignment.index[0, 0]
    torch.testing.assert_close(condensed.tokens.features[first], batch.features[:EACH].mean(0))


def test_fps_finds_every_kind() -> None:
    kept = create_condenser("fps", dim=16, tokens=4)(kinds()).tokens.origin
    assert sorted((kept // EACH).tolist()) == [0, 1, 2, 3]


def test_kmeans_on_a_sample_still_assigns_every_patch() -> None:
    condensed = create_condenser("kmeans", dim=16, tokens=4, sample=40)(kinds())
    assert int(condensed.dropped.sum()) == 0
    assert condensed.tokens.mass.tolist() == [EACH] * 4


def test_kmeans_finds_its_centres_on_at_least_as_many_patches() -> None:
    condensed = create_condenser("kmeans", dim=16, sample=2)(make_batch([50]), tokens=8)
    assert bool(condensed.tokens.mask.all())


def test_merge_finds_neighbours_by_position_and_not_by_row() -> None:
    """Two distant pieces of tissue with alternating rows. Windows of eight along the curve never contain both."""
    generator = torch.Generator().manual_seed(2)
    near, far = torch.rand(16, 2, generator=generator) * 3, torch.rand(16, 2, generator=generator) * 3 + 500
    positions = torch.stack([near, far], 1).flatten(0, 1)
    batch = replace(make_batch([32]), positions=positions, features=torch.randn(32, 16, generator=generator))
    merge = create_condenser("merge", dim=16, tokens=16, window=8)
    placed, bare = (merge(b).assignment.index[:, 0] for b in (batch, replace(batch, positions=None)))
    assert not set(placed[0::2].tolist()) & set(placed[1::2].tolist())
    assert set(bare[0::2].tolist()) & set(bare[1::2].tolist())


def test_merge_without_positions_follows_the_order_of_the_bag() -> None:
    batch = replace(kinds(), positions=None)
    condensed = create_condenser("merge", dim=16, tokens=4)(batch)
    assert condensed.tokens.positions is None
    assert condensed.assignment.index[:, 0].tolist() == [g for g in range(4) for _ in range(EACH)]


def test_merged_tokens_have_the_mean_position_of_their_patches() -> None:
    batch = kinds()
    condensed = create_condenser("merge", dim=16, tokens=4)(batch)
    assert condensed.tokens.positions is not None
    assert batch.positions is not None
    first = int(condensed.assignment.index[0, 0])
    torch.testing.assert_close(condensed.tokens.positions[first], batch.positions[:EACH].mean(0))


def test_thumbnail_averages_cells() -> None:
    """40 patches, ten wide and four high, in 2 × 2 cells of five by two."""
    batch = make_batch([40])
    condensed = create_condenser("thumbnail", dim=16, tokens=5)(batch)
    rows = torch.arange(40)
    cell = (rows // 20) * 2 + (rows % 10) // 5
    assert condensed.assignment.index[:, 0].tolist() == cell.tolist()
    torch.testing.assert_close(condensed.tokens.features[3], batch.features[cell == 3].mean(0))
    with pytest.raises(MissingCoordinates, match="thumbnail needs positions"):
        create_condenser("thumbnail", dim=16)(replace(batch, positions=None))


def test_a_cell_without_tissue_is_masked() -> None:
    corners = Bag(torch.randn(2, 16), torch.tensor([[0.0, 0.0], [2560.0, 2560.0]]), 256.0, "slide")
    tokens = create_condenser("thumbnail", dim=16, tokens=4)(TokenBatch.pack([corners])).tokens
    assert tokens.mask.tolist() == [True, False, False, True]
    assert not tokens.features[1:3].any()


def test_attention_keeps_its_best_and_scales_them_by_their_share() -> None:
    condenser, batch = create_condenser("attention", dim=16, tokens=3, hidden=8), make_batch([20])
    condensed = condenser(batch, predictions=True)
    scores = condenser.scores(batch.features).detach()  # type: ignore[operator]
    best = scores.topk(3).indices.sort().values
    assert condensed.tokens.origin.tolist() == best.tolist()
    share = scores[best].softmax(0)
    torch.testing.assert_close(condensed.tokens.features.detach(), 3 * share[:, None] * batch.features[best])
    pooled = scores.softmax(0) @ batch.features
    torch.testing.assert_close(condensed.predictions["attention"].detach()[0], pooled)


def test_attention_loads_weights_from_before_its_scorer_was_a_module() -> None:
    condenser, batch = create_condenser("attention", dim=16, tokens=3, hidden=8), make_batch([20])
    old = {key.replace("scorer.", ""): value for key, value in condenser.state_dict().items()}
    assert set(old) == {"both.weight", "both.bias", "logit.weight", "logit.bias"}
    again = create_condenser("attention", dim=16, tokens=3, hidden=8)
    assert not torch.equal(again(batch).tokens.features, condenser(batch).tokens.features)
    again.load_state_dict(old)
    assert torch.equal(again(batch).tokens.features, condenser(batch).tokens.features)
    model = torch.nn.ModuleDict({"condenser": create_condenser("attention", dim=16, tokens=3, hidden=8)})
    model.load_state_dict({f"condenser.{key}": value for key, value in old.items()})
    assert torch.equal(model["condenser"](batch).tokens.features, condenser(batch).tokens.features)


@pytest.mark.slow
def test_attention_learns_a_needle_by_its_own_loss() -> None:
    """One patch in 100 tells the class. The loss on `predictions` alone must bring it among the four kept."""
    generator = torch.Generator().manual_seed(0)
    condenser, head = create_condenser("attention", dim=8, tokens=4, hidden=16), torch.nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*condenser.parameters(), *head.parameters()], lr=1e-2)

    def slides(n: int = 16) -> tuple[TokenBatch, torch.Tensor]:
        labels = torch.arange(n) % 2
        features = torch.randn(n, 100, 8, generator=generator)
        features[torch.arange(n), 50, labels] += 6
        return TokenBatch.pack([Bag(f, None, None, f"s{i}") for i, f in enumerate(features)]), labels

    for _ in range(120):
        batch, labels = slides()
        loss = F.cross_entropy(head(condenser(batch, predictions=True).predictions["attention"]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = condenser.eval()(slides()[0]).tokens
    found = [50 in slide.origin.tolist() for slide in kept]
    assert sum(found) >= 15


def test_streams_say_what_they_cannot_do() -> None:
    with pytest.raises(InputError, match=r"needs a count of tokens, not the keep rate 0\.5"):
        create_condenser("random", dim=16, tokens=0.5).stream("slide")
    stream = create_condenser("mean", dim=16).stream("slide")
    stream.update(torch.randn(3, 16), torch.rand(3, 2))
    with pytest.raises(BagError, match="positions must come with every chunk or with none"):
        stream.update(torch.randn(3, 16))
    with pytest.raises(BagError, match="features are 5 wide"):
        stream.update(torch.randn(3, 5), torch.rand(3, 2))
    with pytest.raises(BagError, match=r"were torch\.float32, now torch\.float16; all chunks must have one dtype"):
        stream.update(torch.randn(3, 16).half(), torch.rand(3, 2))
    with pytest.raises(BagError, match="slide 'slide': a chunk has no patches; skip empty chunks"):
        stream.update(torch.randn(0, 16), torch.rand(0, 2))
