"""Every condenser under every check of the contract, and the refusals that all of them share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from abbe.condensers import condenser_class, create_condenser, list_condensers
from abbe.errors import BagError, ConfigError, InputError
from abbe.types import TokenBatch
from builders import make_batch
from contract.checks import CHECKS
from contract.promise import DIM, make

NAMES = list_condensers()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, check: str) -> None:
    cls = condenser_class(name)
    if check not in cls.expected_failures:
        CHECKS[check](cls, name)
        return
    with pytest.raises(AssertionError):  # did not raise: remove the entry, the method keeps this promise
        CHECKS[check](cls, name)


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name: str) -> None:
    cls = condenser_class(name)
    condenser = make(cls, name)
    with pytest.raises(BagError, match=f"{name}: features are {DIM + 1} wide, but the condenser has dim={DIM}"):
        condenser(make_batch([3], dim=DIM + 1))
    with pytest.raises(BagError, match=f"{name}: slide 'slide1' has no patches"):
        condenser(make_batch([3, 0], dim=DIM))
    broken = make_batch([3, 4], dim=DIM)
    broken.features[5, 2] = float("nan")
    with pytest.raises(BagError, match=f"{name}: slide 'slide1', patch 2: features are not finite"):
        condenser(broken)
    lost = make_batch([3, 4], dim=DIM)
    lost.positions[4, 1] = float("nan")  # type: ignore[index]
    with pytest.raises(BagError, match=f"{name}: slide 'slide1', patch 1: positions are not finite"):
        condenser(lost)
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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tcssa", {"hidden": "abc"}, r"condenser 'tcssa': hidden must be int, got 'abc' \(str\)"),
        ("tcssa", {"gate_bias": "no"}, r"gate_bias must be bool, got 'no' \(str\)"),
        ("tcssa", {"hidden": True}, r"hidden must be int, got True \(bool\)"),
        ("tcssa", {"dim": 4.0}, r"dim must be int, got 4\.0 \(float\)"),
        ("tcssa", {"top_k": 0}, "tcssa: top_k must be at least 1, got 0"),
        ("tcssa", {"hidden": 0}, "tcssa: hidden must be at least 1, got 0"),
        ("tcssa", {"dropout": 1}, "tcssa: dropout must be at least 0 and below 1, got 1"),
        ("tcssa", {"noise": -1}, "tcssa: noise must be at least 0, got -1"),
        ("tcssa", {"aux_weight": float("nan")}, "tcssa: aux_weight must be at least 0, got nan"),
        ("sparselearn", {"tau_start": "x"}, r"tau_start must be float, got 'x'"),
        ("sparselearn", {"budget_start": "x"}, r"budget_start must be float \| None, got 'x'"),
        ("sparselearn", {"context": None}, r"context must be str, got None"),
        ("sparselearn", {"layers": -1}, "sparselearn: layers must be at least 1, got -1"),
        ("sparselearn", {"scorer_width": 0}, "scorer_width must be at least 1, got 0"),
        ("sparselearn", {"heads": 0}, "heads must be at least 1, got 0"),
        ("sparselearn", {"latents": 0}, "latents must be at least 1, got 0"),
        ("slim", {"embed": 20, "heads": 2}, r"slim: embed must be a multiple of 4 · heads, got embed=20, heads=2"),
        ("slim", {"theta": 0}, "theta must be above 0, got 0"),
        ("attention", {"hidden": 0}, "attention: hidden must be at least 1, got 0"),
        ("kmeans", {"steps": -1}, "kmeans: steps must be at least 0, got -1"),
        ("kmeans", {"sample": 0}, "kmeans: sample must be at least 1, got 0"),
        ("sparselearn", {"tau_start": float("inf")}, "0 < tau_end ≤ tau_start < ∞, got tau_start=inf"),
        ("merge", {"window": 1}, "merge: window must be at least 2, got 1"),
    ],
)
def test_options_of_another_type_or_out_of_range(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_condenser(name, **{"dim": DIM, **options})


def test_numbers_of_numpy_and_torch_are_budgets_too() -> None:
    batch = make_batch([10, 9, 1], dim=DIM)
    condenser = create_condenser("random", dim=np.int64(DIM), tokens=np.int64(4))
    assert condenser.config == {"dim": DIM, "tokens": 4, "seed": 0}
    assert {type(value) for value in condenser.config.values()} == {int}
    for budget, kept in (
        (np.int64(3), [3, 3, 1]),
        (np.float32(0.7), [7, 6, 1]),  # 0.699999988 in float32
        (torch.tensor(0.7), [7, 6, 1]),
        (torch.tensor([0.7, 0.3, 1.0]), [7, 2, 1]),
        (torch.tensor([2, 5, 1]), [2, 5, 1]),
        (np.array([2, 5, 1]), [2, 5, 1]),
        ([np.float64(0.5), 2, torch.tensor(1).item()], [5, 2, 1]),
    ):
        assert condenser(batch, tokens=budget).tokens.lengths.tolist() == kept, budget


def test_none_records_no_smaller_budget() -> None:
    assert create_condenser("none", dim=DIM, tokens=4).tokens == 1.0


def test_a_keep_rate_and_one_budget_per_slide() -> None:
    condenser, batch = create_condenser("random", dim=DIM), make_batch([10, 20, 3], dim=DIM)
    assert condenser(batch, tokens=0.5).tokens.lengths.tolist() == [5, 10, 1]
    assert condenser(batch, tokens=[2, 0.1, 9]).tokens.lengths.tolist() == [2, 2, 3]


def test_another_number_of_slots_is_refused() -> None:
    condenser = create_condenser("tcssa", dim=DIM, tokens=4)
    assert condenser(make_batch([3], dim=DIM), tokens=4).tokens.lengths.tolist() == [4]
    with pytest.raises(InputError, match="4 slots, which are trained weights, so a call cannot ask for 8 tokens"):
        condenser(make_batch([3], dim=DIM), tokens=8)


def test_random_keeps_the_same_patches_whatever_is_in_the_batch() -> None:
    """By hash of seed, slide and row: half a slide keeps its share of the same patches, another seed does not."""
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
    # Each patch is kept 40 times on average, with a standard deviation of 6.
    assert 15 < float(counts.min()) <= float(counts.max()) < 70
