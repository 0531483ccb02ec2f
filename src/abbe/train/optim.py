"""The optimiser and learning rate schedule of a recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from abbe.errors import ConfigError
from abbe.train.recipe import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups of the optimiser: one per prefix of `group_lr` with its rate, and all others with `recipe.lr`.

    A parameter belongs to its longest matching prefix. Raises ConfigError for a prefix that matches no parameter.
    """
    rates = recipe.rates()
    groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in (*rates, "")}
    for name, parameter in model.named_parameters():
        fitting = [prefix for prefix in rates if name == prefix or name.startswith(f"{prefix}.")]
        groups[max(fitting, key=len, default="")].append(parameter)
    for prefix in rates:
        if not groups[prefix]:
            parts = sorted({name.partition(".")[0] for name, _ in model.named_parameters()})
            raise ConfigError(f"recipe: group_lr {prefix!r} matches no parameter; the model has {', '.join(parts)}")
    return [{"params": group, "lr": rates.get(prefix, recipe.lr)} for prefix, group in groups.items() if group]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the groups of `parameter_groups`."""
    groups = parameter_groups(model, recipe)
    # Fused is faster: the experts of the slots have millions of parameters.
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


class Schedule:
    """Learning rate schedule; call `after_step` and `after_epoch` to advance it."""

    # Not saved: set by the constructor of the scheduler, or not needed (one is infinite, which JSON cannot store).
    _CONSTANTS = frozenset({"mode_worse", "_last_lr", "lr_lambdas"})

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> None:
        self.inner: LRScheduler | ReduceLROnPlateau | None = None
        if recipe.schedule == "plateau":
            self.inner = ReduceLROnPlateau(
                optimizer,
                mode="min" if recipe.monitor == "loss" else "max",
                factor=recipe.plateau_factor,
                patience=recipe.plateau_patience,
                min_lr=recipe.min_lr,
            )
        elif recipe.schedule == "cosine":
            from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

            self.inner = get_cosine_with_min_lr_schedule_with_warmup(
                optimizer,
                num_warmup_steps=round(recipe.warmup * steps_per_epoch),
                num_training_steps=recipe.epochs * steps_per_epoch,
                min_lr=recipe.min_lr,
            )

    def after_step(self) -> None:
        """Call after every optimiser step."""
        if self.inner is not None and not isinstance(self.inner, ReduceLROnPlateau):
            self.inner.step()

    def after_epoch(self, monitored: float) -> None:
        """Call after every epoch with the monitored value on the validation slides."""
        if isinstance(self.inner, ReduceLROnPlateau):
            self.inner.step(monitored)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        state = {} if self.inner is None else self.inner.state_dict()
        # Before its first value, the best of a plateau is infinite too; left out, it is the constructor's when loaded.
        return {key: value for key, value in state.items() if key not in self._CONSTANTS and not _infinite(value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        if self.inner is not None:
            self.inner.load_state_dict({**self.inner.state_dict(), **state})


def _infinite(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)
