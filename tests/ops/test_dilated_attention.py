"""Dilated attention against a dense masked softmax, values and gradients, also through the log-sum-exp."""

from __future__ import annotations

import pytest
import torch

from abbe.errors import ConfigError
from abbe.ops import naive
from abbe.ops.dilated_attention import Branch, branches_of, dilated_attention
from abbe.types import offsets_of


def compare(n: int, heads: int, width: int, branches: list[Branch], queries: int | None = None) -> None:
    """Output, lse and the three gradients of one sequence of n tokens, to 1e-5 in float32.

    queries: number of random queries that are compared and get a gradient, besides those at segment borders.
    """
    q, k, v = (torch.randn(n, heads, width, requires_grad=True) for _ in range(3))
    output, lse = dilated_attention(q, k, v, offsets_of([n]), [branches])
    borders = [row for row in (0, 1023, 1024, 2047, 2048, 16_383, 16_384, n - 1) if row < n]
    rows = (
        torch.arange(n) if queries is None else torch.cat([torch.randperm(n)[:queries], torch.tensor(borders)]).unique()
    )
    at_output, at_lse = torch.randn(len(rows), heads, width), torch.randn(len(rows), heads)
    fast = torch.autograd.grad((output[rows] * at_output).sum() + (lse[rows] * at_lse).sum(), [q, k, v])
    slow = [torch.zeros_like(x) for x in (q, k, v)]
    for some, probe, probe_lse in zip(rows.split(256), at_output.split(256), at_lse.split(256), strict=True):
        right, right_lse = naive.dilated_attention(q, k, v, branches, some.tolist())
        torch.testing.assert_close(output[some].double(), right, atol=1e-5, rtol=0)
        torch.testing.assert_close(lse[some].double(), right_lse, atol=1e-5, rtol=0)
        loss = (right * probe).sum() + (right_lse * probe_lse).sum()
        for total, grad in zip(slow, torch.autograd.grad(loss, [q, k, v]), strict=True):
            total += grad
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("segments", ["paper", "cover"])
@pytest.mark.parametrize("n", [1, 7, 63, 130])
def test_short_pieces_in_many_segments(n: int, segments: str) -> None:
    compare(n, 5, 8, branches_of(n, segments=segments, piece=8, levels=3))


@pytest.mark.parametrize("segments", ["paper", "cover"])
@pytest.mark.parametrize(("n", "heads"), [(1, 16), (7, 16), (1000, 3), (1025, 3)])
def test_published_pieces(n: int, heads: int, segments: str) -> None:
    compare(n, heads, 8, branches_of(n, segments=segments))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "heads", "queries"), [(4097, 2, 1000), (17_000, 2, 500)])
def test_published_pieces_of_long_slides(n: int, heads: int, queries: int) -> None:
    compare(n, heads, 4, branches_of(n), queries)


@pytest.mark.slow
def test_gradcheck_through_output_and_lse() -> None:
    q, k, v = (torch.randn(11, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    branches = [branches_of(11, piece=4, levels=2)]
    assert torch.autograd.gradcheck(lambda *x: dilated_attention(*x, offsets_of([11]), branches), (q, k, v))


def test_packed_slides_do_not_see_each_other() -> None:
    q, k, v = (torch.randn(70, 4, 8) for _ in range(3))
    lengths = [9, 1, 60]
    branches = [branches_of(n, piece=8, levels=3) for n in lengths]
    output, lse = dilated_attention(q, k, v, offsets_of(lengths), branches)
    alone, alone_lse = dilated_attention(q[10:], k[10:], v[10:], offsets_of([60]), branches[2:])
    assert torch.equal(output[10:], alone)
    assert torch.equal(lse[10:], alone_lse)


def test_heads_take_their_own_offset() -> None:
    """With one dilated branch, head h sees only rows h mod r: the others get nothing, and a log-sum-exp of −inf."""
    q, k, v = (torch.randn(12, 4, 4) for _ in range(3))
    output, lse = dilated_attention(q, k, v, offsets_of([12]), [[(12, 3)]])
    for head in range(4):
        seen = torch.arange(12) % 3 == head % 3
        assert torch.equal(lse[:, head].isfinite(), seen)
        assert not output[~seen, head].any()


def test_bf16_is_near_float32() -> None:
    q, k, v = (torch.randn(100, 2, 16) for _ in range(3))
    branches = [branches_of(100, piece=32, levels=2)]
    exact, _ = dilated_attention(q, k, v, offsets_of([100]), branches)
    low, lse = dilated_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), offsets_of([100]), branches)
    assert low.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    assert float((low.float() - exact).norm() / exact.norm()) < 0.02


def test_float16_values_do_not_overflow() -> None:
    """A thousand equal keys weigh 1 each before they are divided; their sum times 100 would not fit."""
    q, k, v = torch.zeros(1000, 1, 8).half(), torch.zeros(1000, 1, 8).half(), torch.full((1000, 1, 8), 100.0).half()
    output, _ = dilated_attention(q, k, v, offsets_of([1000]), [branches_of(1000)])
    torch.testing.assert_close(output.float(), torch.full((1000, 1, 8), 100.0), atol=0.1, rtol=0)


def test_branches() -> None:
    assert branches_of(17_000, segments="paper") == [(1024 * 2**i, 2**i) for i in range(5)]
    assert branches_of(17_000)[-1] == (17_000, 17)
    with pytest.raises(ConfigError, match=r"segments must be one of cover, paper, got 'covers'\. Did you mean 'cover'"):
        branches_of(10, segments="covers")
