"""Recipes: what they refuse, which parameters get which rate, and how the rate moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from abbe.errors import ConfigError
from abbe.train.optim import Schedule, make_optimizer, parameter_groups
from abbe.train.recipe import RECIPES, Recipe


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.condenser = nn.ModuleDict({"gate": nn.Linear(3, 2), "experts": nn.Linear(2, 2)})
        self.head = nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"lr": math.nan}, "lr must be at least 0, got nan"),
        ({"clip": 0.0}, "clip must be above 0 or None, got 0.0"),
        ({"warmup": 1.0}, "warmup needs schedule cosine, not plateau"),
        ({"group_lr": ("head",)}, "group_lr 'head': expected prefix=rate"),
        ({"group_lr": ("head=fast",)}, "group_lr 'head=fast': expected prefix=rate"),
        ({"group_lr": ("=1",)}, "group_lr '=1': expected prefix=rate"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**options)  # type: ignore[arg-type]


def test_a_parameter_gets_the_rate_of_its_longest_prefix() -> None:
    model = Model()
    recipe = Recipe(lr=1.0, group_lr=("condenser=0.1", "condenser.gate=0.01"))
    rates = {id(p): group["lr"] for group in make_optimizer(model, recipe).param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in model.named_parameters()} == {
        "condenser.gate.weight": 0.01,
        "condenser.gate.bias": 0.01,
        "condenser.experts.weight": 0.1,
        "condenser.experts.bias": 0.1,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }


def test_a_prefix_that_fits_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="group_lr 'condens' matches no parameter; the model has condenser, head"):
        parameter_groups(Model(), Recipe(group_lr=("condens=0.1",)))


def test_cosine_warms_up_and_falls_to_min_lr_step_by_step() -> None:
    recipe = Recipe(epochs=5, lr=1.0, schedule="cosine", warmup=2.0, min_lr=0.1)
    optimizer = make_optimizer(Model(), recipe)
    schedule, rates = Schedule(optimizer, recipe, steps_per_epoch=4), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
    assert rates[:9] == pytest.approx([step / 8 for step in range(9)])
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 8) / 12)) for step in range(8, 20)]
    assert rates[8:] == pytest.approx(expected)


@pytest.mark.parametrize(("monitor", "values"), [("loss", [1.0, 1.0, 1.0]), ("auroc", [0.9, 0.9, 0.9])])
def test_the_plateau_follows_the_monitored_value_down_to_min_lr(monitor: str, values: list[float]) -> None:
    recipe = Recipe(lr=1.0, plateau_patience=0, min_lr=0.4, monitor=monitor)  # type: ignore[arg-type]
    optimizer = make_optimizer(Model(), recipe)
    schedule = Schedule(optimizer, recipe, steps_per_epoch=1)
    rates = []
    for value in values:
        schedule.after_epoch(value)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 0.5, 0.4]


@pytest.mark.parametrize("name", ["plateau", "cosine", "constant"])
def test_a_schedule_goes_on_where_it_was_saved(name: str) -> None:
    recipe = Recipe(epochs=6, lr=1.0, schedule=name, plateau_patience=1)  # type: ignore[arg-type]

    def advance(schedule: Schedule, optimizer: torch.optim.Optimizer, losses: list[float]) -> list[float]:
        rates = []
        for loss in losses:
            optimizer.step()
            schedule.after_step()
            schedule.after_epoch(loss)
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    whole = make_optimizer(Model(), recipe)
    all_rates = advance(Schedule(whole, recipe, 1), whole, [1.0, 1.1, 1.2, 1.3, 1.4])
    first = make_optimizer(Model(), recipe)
    schedule = Schedule(first, recipe, 1)
    head = advance(schedule, first, [1.0, 1.1])
    second = make_optimizer(Model(), recipe)
    again = Schedule(second, recipe, 1)
    again.load_state_dict(schedule.state_dict())
    for group, saved in zip(second.param_groups, first.param_groups, strict=True):
        group["lr"] = saved["lr"]
    assert head + advance(again, second, [1.2, 1.3, 1.4]) == all_rates


def test_tcssa_mil_is_what_the_authors_scripts_use() -> None:
    stated = {"lr": 1e-4, "weight_decay": 1e-5, "batch_size": 8, "plateau_factor": 0.5, "plateau_patience": 5}
    stated |= {"min_lr": 1e-6, "early_stop": 15, "monitor": "auroc", "epochs": 50, "schedule": "plateau"}
    assert {key: getattr(RECIPES["tcssa-mil"], key) for key in stated} == stated
