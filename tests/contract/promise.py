"""What the checks of the contract share: their list, small condensers, comparisons that say what differs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from abbe.condensers import create_condenser
from abbe.condensers.base import Condenser
from abbe.types import Condensed, TokenBatch

DIM = 16
LENGTHS = [9, 1, 3, 40]
Check = Callable[[type[Condenser], str], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Add a check to the contract. Its docstring is the promise, which every failure repeats."""
    promise = inspect.cleandoc(function.__doc__ or "")
    assert promise, f"{function.__name__} has no docstring"

    @functools.wraps(function)
    def checked(cls: type[Condenser], name: str) -> None:
        try:
            function(cls, name)
        except BaseException as error:  # a `pytest.raises` that fails is no Exception
            error.add_note(f"`{name}` breaks the contract: {promise}")
            raise

    CHECKS[function.__name__] = checked
    return checked


def make(cls: type[Condenser], name: str, **options: Any) -> Condenser:
    """A small condenser in eval mode, with weights of a fixed seed."""
    torch.manual_seed(0)
    return create_condenser(name, dim=DIM, **{**cls.small, **options}).eval()


def run(condenser: Condenser, batch: TokenBatch, **options: Any) -> Condensed:
    """A call with a fixed seed."""
    torch.manual_seed(1)
    return condenser(batch, **options)


def assert_close(actual: Tensor, expected: Tensor, what: str, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, msg=lambda found: f"{what}: {found}", **tolerance)


def assert_same_slide(alone: Condensed, whole: Condensed, b: int, tolerance: float) -> None:
    """`alone` is slide b of `whole`."""
    slide = f"slide {b} of {whole.tokens.lengths0.tolist()} patches"
    one, other = alone.tokens, whole.tokens[b]
    assert_close(one.features, other.features, f"{slide}: features", atol=tolerance, rtol=0)
    assert_close(one.mass, other.mass, f"{slide}: mass", atol=tolerance * 10, rtol=1e-5)
    assert one.mask.tolist() == other.mask.tolist(), f"{slide}: mask alone and in the batch"
    assert one.origin.tolist() == other.origin.tolist(), f"{slide}: origin alone and in the batch"
    mine, theirs = alone.assignment, whole.assignment[b]
    assert mine.index.tolist() == theirs.index.tolist(), f"{slide}: assignment alone and in the batch"
    assert_close(mine.weight, theirs.weight, f"{slide}: weights of the assignment", atol=tolerance, rtol=0)
