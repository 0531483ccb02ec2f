"""How a model is trained: batches, rates, schedule, stopping."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from abbe.errors import ConfigError, check_range


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of the TC-SSA authors' MIL code, except that they monitor the AUROC."""

    epochs: int = 60
    """at most this many passes over the training slides"""
    batch_size: int = 8
    """slides per optimiser step, over all processes"""
    accumulate: int = 1
    """parts in which each batch is computed, to save memory; the step is the same"""
    lr: float = 1e-4
    """learning rate of AdamW"""
    group_lr: tuple[str, ...] = ()
    """learning rates of groups of parameters, as prefix=rate, e.g. condenser=1e-5"""
    weight_decay: float = 1e-5
    """weight decay of AdamW"""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """plateau: the rate falls when the monitored value stops improving; cosine: it falls to min-lr, step by step"""
    warmup: float = 0.0
    """cosine: epochs over which the rate rises from 0"""
    plateau_factor: float = 0.5
    """plateau: the learning rate is multiplied by this"""
    plateau_patience: int = 5
    """plateau: epochs without improvement before that"""
    min_lr: float = 0.0
    """the learning rate falls no further than this"""
    clip: float | None = None
    """largest norm of the gradient; none by default"""
    monitor: Literal["loss", "auroc", "qwk"] = "loss"
    """what is watched on the validation slides: it drives the plateau, early stopping and the choice of weights; ties
    are broken by the loss"""
    early_stop: int | None = 15
    """epochs without improvement before training stops; None: never"""
    seed: int = 0
    """of weights, batches, noise and dropout"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed precision, as Accelerate names it"""
    checkpoint_every: int = 5
    """epochs between checkpoints; a run that is killed loses at most these"""

    def __post_init__(self) -> None:
        check_range("recipe", 1, epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate)
        check_range("recipe", 1, checkpoint_every=self.checkpoint_every)
        check_range("recipe", 0, lr=self.lr, weight_decay=self.weight_decay, warmup=self.warmup, min_lr=self.min_lr)
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"recipe: clip must be above 0 or None, got {self.clip!r}")
        if self.warmup and self.schedule != "cosine":
            raise ConfigError(f"recipe: warmup needs schedule cosine, not {self.schedule}")
        self.rates()

    def rates(self) -> dict[str, float]:
        """{prefix of parameter names: learning rate} from `group_lr`. ConfigError for what is not prefix=rate."""
        found: dict[str, float] = {}
        for pair in self.group_lr:
            prefix, equals, rate = pair.partition("=")
            try:
                found[prefix] = float(rate)
            except ValueError:
                equals = ""
            if not equals or not prefix or not found[prefix] >= 0:
                raise ConfigError(f"recipe: group_lr {pair!r}: expected prefix=rate, such as condenser=1e-5")
        return found


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of an optimiser: the parameters of each prefix with its rate, then all others with `recipe.lr`.

    A parameter belongs to its longest prefix. Raises ConfigError for a prefix that fits no parameter.
    """
    rates = recipe.rates()
    groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in (*rates, "")}
    for name, parameter in model.named_parameters():
        fitting = [prefix for prefix in rates if name == prefix or name.startswith(f"{prefix}.")]
        groups[max(fitting, key=len, default="")].append(parameter)
    for prefix in rates:
        if not groups[prefix]:
            parts = sorted({name.partition(".")[0] for name, _ in model.named_parameters()})
            raise ConfigError(f"recipe: group_lr {prefix!r} fits no parameter; the model has {', '.join(parts)}")
    return [{"params": group, "lr": rates.get(prefix, recipe.lr)} for prefix, group in groups.items() if group]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the groups of `parameter_groups`."""
    groups = parameter_groups(model, recipe)
    # Fused: one pass over each parameter; the slots' experts have millions of them.
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


class Schedule:
    """The learning rate over training: told after every step and after every epoch."""

    # Made again by the scheduler's constructor, and not JSON (an infinity) or not needed.
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
        """After every optimiser step."""
        if self.inner is not None and not isinstance(self.inner, ReduceLROnPlateau):
            self.inner.step()

    def after_epoch(self, monitored: float) -> None:
        """After every epoch, with the monitored value on the validation slides."""
        if isinstance(self.inner, ReduceLROnPlateau):
            self.inner.step(monitored)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        state = {} if self.inner is None else self.inner.state_dict()
        return {key: value for key, value in state.items() if key not in self._CONSTANTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        if self.inner is not None:
            self.inner.load_state_dict({**{key: self.inner.state_dict().get(key) for key in self._needed()}, **state})

    def _needed(self) -> Iterable[str]:
        assert self.inner is not None
        return [key for key in self.inner.state_dict() if key in self._CONSTANTS]
