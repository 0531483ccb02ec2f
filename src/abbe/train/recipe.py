"""How a model is trained: batches, rates, schedule, stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
