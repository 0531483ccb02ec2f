from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abbe.errors import BagError, InputError, MissingCoordinates
from abbe.types import Assignment, Bag, Condensed, TokenBatch, offsets_of
from builders import make_bag, make_batch

COORDS = torch.tensor([[0.0, 0.0], [256.0, 0.0], [512.0, 256.0]])


def bag(features: torch.Tensor | None = None, coords: torch.Tensor | None = COORDS, **other: object) -> Bag:
    features = torch.ones(3, 4) if features is None else features
    size = other.pop("patch_size_level0", 256.0)
    return Bag(features, coords, size, "slide", **other)  # type: ignore[arg-type]


def test_positions_are_patch_centres_in_patch_units() -> None:
    assert bag().positions.tolist() == [[0.5, 0.5], [1.5, 0.5], [2.5, 1.5]]


def test_a_bare_bag_packs_and_says_which_option_gives_positions() -> None:
    bare = bag(coords=None, patch_size_level0=None)
    assert TokenBatch.pack([bare]).positions is None
    with pytest.raises(MissingCoordinates, match="--patch-size-level0 or --slide"):
        _ = bare.positions


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"features": torch.ones(3)}, r"\[N, D\], got shape \(3,\)"),
        ({"features": torch.ones(3, 4).double()}, "float32 or float16, got torch.float64"),
        ({"features": torch.tensor([[1.0], [float("nan")], [1.0]])}, r"features\[1, 0\] is nan"),
        ({"features": torch.tensor([[1.0], [1.0], [float("inf")]])}, r"features\[2, 0\] is inf"),
        ({"coords": COORDS[:2]}, r"coords must be \[3, 2\] like the features, got \(2, 2\)"),
        ({"coords": COORDS - 1}, r"coords\[0\] = \[-1.0, -1.0\] is negative"),
        ({"coords": COORDS * float("nan")}, r"coords\[0\] = \[nan, nan\] is not finite"),
        ({"coords": COORDS[[0, 1, 1]]}, r"coords\[2\] = \[256.0, 0.0\] is duplicated"),
        ({"level0_size": (512, 512)}, r"coords\[2\] = \[512.0, 256.0\] is outside the slide of \(512, 512\)"),
        ({"patch_size_level0": None}, "give both or neither"),
        ({"patch_size_level0": 0.0}, "patch_size_level0 must be a positive number, got 0"),
        ({"mpp": -0.5}, "mpp must be a positive number, got -0.5"),
    ],
)
def test_a_contradiction_is_refused_with_the_value(broken: dict[str, object], message: str) -> None:
    with pytest.raises(BagError, match=message):
        bag(source="file.h5", **broken)


def test_an_overhang_of_less_than_a_patch_is_right() -> None:
    assert len(bag(level0_size=(513, 257))) == 3


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_pack_and_unpack_agree(lengths: list[int]) -> None:
    batch = make_batch(lengths, dim=3)
    assert batch.lengths.tolist() == lengths == batch.lengths0.tolist()
    assert [len(slide.features) for slide in batch.unpack()] == lengths
    assert torch.equal(torch.cat([slide.features for slide in batch]), batch.features)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("offsets", torch.tensor([0, 2, 4]), "offsets must run from 0 to 5"),
        ("offsets", torch.tensor([0, 6, 5]), "offsets must not decrease"),
        ("offsets", torch.tensor([0, 5]), r"offsets must be int64 \[3\] on the CPU for 2 slides"),
        ("lengths0", torch.tensor([2.0, 3.0]), r"lengths0 must be int64 \[2\] on the CPU for 2 slides"),
        ("mass", torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0]), "mass must be finite and not negative"),
        ("weight", torch.ones(4), r"weight must be \[T\] = \[5\]"),
        ("mask", torch.ones(5), "mask must be torch.bool"),
        ("origin", torch.zeros(5), "origin must be torch.int64"),
        ("positions", torch.zeros(5, 3), r"positions must be \[T, 2\]"),
        ("features", torch.zeros(5, 2, dtype=torch.int64), "features must be floating"),
    ],
)
def test_a_broken_batch_is_refused(field: str, value: torch.Tensor, message: str) -> None:
    batch = make_batch([2, 3])
    with pytest.raises(InputError, match=message):
        TokenBatch(**{**vars(batch), field: value})


def test_widths_that_differ_are_refused_by_slide() -> None:
    with pytest.raises(BagError, match=r"'a': 4, 'b': 5"):
        TokenBatch.pack([make_bag(2, dim=4, slide_id="a"), make_bag(2, dim=5, slide_id="b")])


def assignments(p: int, r: int, k: int) -> st.SearchStrategy[tuple[list[list[int]], list[list[float]]]]:
    row = st.lists(st.integers(-1, k - 1), min_size=r, max_size=r, unique_by=lambda v: v if v >= 0 else object())
    weights = st.lists(st.floats(0, 1, width=32), min_size=r, max_size=r)
    return st.tuples(st.lists(row, min_size=p, max_size=p), st.lists(weights, min_size=p, max_size=p))


def as_assignment(values: tuple[list[list[int]], list[list[float]]]) -> Assignment:
    index, weight = torch.tensor(values[0], dtype=torch.int32), torch.tensor(values[1])
    return Assignment(index, torch.where(index >= 0, weight, 0.0), offsets_of([len(index)]))


def dense(assignment: Assignment, k: int) -> torch.Tensor:
    matrix = torch.zeros(len(assignment.index), k)
    for row, (index, weight) in enumerate(zip(assignment.index, assignment.weight, strict=True)):
        for token, value in zip(index.tolist(), weight.tolist(), strict=True):
            if token >= 0:
                matrix[row, token] += value
    return matrix


@given(assignments(6, 2, 4), assignments(4, 2, 3))
@settings(max_examples=60, deadline=None)
def test_then_is_the_product_of_the_dense_matrices(first: tuple, second: tuple) -> None:  # type: ignore[type-arg]
    a, b = as_assignment(first), as_assignment(second)
    joined = a.then(b)
    torch.testing.assert_close(dense(joined, 3), dense(a, 4) @ dense(b, 3), atol=1e-6, rtol=1e-5)
    for row in joined.index.tolist():
        tokens = [token for token in row if token >= 0]
        assert len(tokens) == len(set(tokens)), "two routes to one token must have become one"


def test_then_keeps_slides_apart() -> None:
    one = torch.ones(4, 1)
    first = Assignment(
        torch.tensor([[0], [1], [0], [-1]], dtype=torch.int32),
        one * torch.tensor([[1.0], [1], [1], [0]]),
        offsets_of([2, 2]),
    )
    second = Assignment(torch.tensor([[5], [6], [7]], dtype=torch.int32), torch.ones(3, 1), offsets_of([2, 1]))
    assert first.then(second).index.tolist() == [[5], [6], [7], [-1]]
    with pytest.raises(InputError, match="names tokens that the second one does not have"):
        Assignment(torch.tensor([[2], [0]], dtype=torch.int32), torch.ones(2, 1), offsets_of([1, 1])).then(second)


def test_a_dropped_patch_with_weight_is_refused() -> None:
    with pytest.raises(InputError, match="weight must be 0 where index is −1"):
        Assignment(torch.tensor([[-1]], dtype=torch.int32), torch.ones(1, 1), offsets_of([1]))


HOSTILE = "<img src=x onerror=alert(1)>\n&'"


def condensed(batch: TokenBatch) -> Condensed:
    """Every patch kept but the last of each slide."""
    index = torch.cat([torch.tensor([*range(n - 1), -1]) for n in batch.lengths.tolist()]).int()[:, None]
    kept = index[:, 0] >= 0
    tokens = batch.rows(kept, offsets_of(batch.lengths - 1))
    return Condensed(tokens, Assignment(index, kept.float()[:, None], batch.offsets), torch.ones(len(batch)).long())


def test_each_type_prints_as_one_line() -> None:
    assert repr(make_bag(3)) == "Bag('slide', 3 × 16, encoder='test', mpp=0.5, patch_size_level0=256)"
    bare = Bag(torch.ones(3, 4), None, None, HOSTILE)
    assert repr(bare) == f"Bag({HOSTILE!r}, 3 × 4, encoder=unknown, mpp=unknown, no coordinates)"
    batch = make_batch([3, 5])
    assert repr(batch) == "TokenBatch(2 slides, 8 tokens × 16)"
    assert repr(condensed(batch)) == "Condensed(2 slides, 6 tokens × 16, 2 dropped)"
    for value in (bare, batch, condensed(batch)):
        assert len(str(value).splitlines()) == 1


def test_notebooks_show_escaped_html() -> None:
    bag = make_bag(3, slide_id=HOSTILE)
    text = bag._repr_html_()
    assert "<tr><td>patches</td><td>3 × 16 float32</td></tr>" in text
    assert "<td>mpp at level 0</td><td>0.5</td>" in text
    found = condensed(TokenBatch.pack([bag, make_bag(5)]))._repr_html_()
    assert "<tr><td>slide</td><td>5</td><td>4</td><td>1</td></tr>" in found
    for html in (text, found, Bag(torch.ones(1, 1), None, None, "s", encoder=HOSTILE)._repr_html_()):
        assert "<img" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;\n&amp;&#x27;" in html
    many = condensed(make_batch([2] * 30))._repr_html_()
    assert many.count("<tr><td>") == 20
    assert "30 slides" in many
