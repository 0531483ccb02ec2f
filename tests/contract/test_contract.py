"""Every condenser under every check of the contract, and the refusals all of them share."""

from __future__ import annotations

import pytest
import torch

from abbe.condensers import condenser_class, create_condenser, list_condensers
from abbe.errors import BagError, ConfigError, InputError
from abbe.types import TokenBatch
from builders import make_batch
from contract.checks import CHECKS, DIM, make

NAMES = list_condensers()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, check: str) -> None:
    cls = condenser_class(name)
    if check in cls.expected_failures:
        with pytest.raises(AssertionError):
            CHECKS[check](cls, name)
    else:
        CHECKS[check](cls, name)


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name: str) -> None:
    cls = condenser_class(name)
    condenser = make(cls, name)
    with pytest.raises(BagError, match=f"{name}: features are {DIM + 1} wide, the condenser was made for dim={DIM}"):
        condenser(make_batch([3], dim=DIM + 1))
    with pytest.raises(BagError, match=f"{name}: slide 'slide1' has no patches"):
        condenser(make_batch([3, 0], dim=DIM))
    broken = make_batch([3, 4], dim=DIM)
    broken.features[5, 2] = float("nan")
    with pytest.raises(BagError, match=f"{name}: slide 'slide1', patch 2: features are not finite"):
        condenser(broken)
    for wrong in (0, 1.5, True, "32"):
        with pytest.raises((ConfigError, InputError), match=r"tokens must be|a keep rate must"):
            condenser(make_batch([3], dim=DIM), tokens=wrong)
    with pytest.raises(ConfigError, match="dim must be at least 1"):
        create_condenser(name, dim=0)
    with pytest.raises(InputError, match="2 budgets for 1 slides"):
        condenser(make_batch([3], dim=DIM), tokens=[1, 2])


def test_unknown_names_and_options_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown name 'tcsa' in condensers\. Did you mean 'tcssa'"):
        create_condenser("tcsa", dim=4)
    with pytest.raises(ConfigError, match=r"no option 'droput'\. Did you mean 'dropout'"):
        create_condenser("tcssa", dim=4, droput=0.1)


def test_a_keep_rate_and_one_budget_a_slide() -> None:
    condenser, batch = create_condenser("random", dim=DIM), make_batch([10, 20, 3], dim=DIM)
    assert condenser(batch, tokens=0.5).tokens.lengths.tolist() == [5, 10, 1]
    assert condenser(batch, tokens=[2, 0.1, 9]).tokens.lengths.tolist() == [2, 2, 3]


def test_slots_are_weights_so_another_budget_is_refused() -> None:
    condenser = create_condenser("tcssa", dim=DIM, tokens=4)
    assert condenser(make_batch([3], dim=DIM), tokens=4).tokens.lengths.tolist() == [4]
    with pytest.raises(InputError, match="4 slots, which are trained weights, so a call cannot ask for 8 tokens"):
        condenser(make_batch([3], dim=DIM), tokens=8)


def test_random_keeps_the_same_patches_whatever_stands_beside_them() -> None:
    """By hash of seed, slide and row: a slide cut in two keeps the same lots, another seed or slide does not."""
    condenser = create_condenser("random", dim=DIM, tokens=5)
    slide = make_batch([50], dim=DIM)
    kept = condenser(slide).tokens.origin.tolist()
    half = TokenBatch(**{**vars(make_batch([25], dim=DIM)), "origin": torch.arange(25, 50)})
    later = condenser(half, tokens=25).tokens.origin
    assert set(kept) & set(range(25, 50)) <= set(later.tolist())
    assert create_condenser("random", dim=DIM, tokens=5, seed=1)(slide).tokens.origin.tolist() != kept
    counts = torch.zeros(50)
    for seed in range(400):
        counts[create_condenser("random", dim=DIM, tokens=5, seed=seed)(slide).tokens.origin] += 1
    # Each patch is kept 40 times on average with a standard deviation of 6: no patch is favoured.
    assert 15 < float(counts.min()) <= float(counts.max()) < 70
