"""Training settings: batches, learning rates, schedule, early stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from abbe.errors import ConfigError, check_range


@dataclass(frozen=True)
class Recipe:
    """Training settings. The defaults are Abbe's own; `RECIPES` has those of published code."""

    epochs: int = 60
    """maximum number of passes over the training slides"""
    batch_size: int = 8
    """slides per optimiser step, over all processes"""
    accumulate: int = 1
    """gradient accumulation: number of parts of each batch, to save memory; the step is the same"""
    lr: float = 3e-4
    """learning rate of AdamW"""
    group_lr: tuple[str, ...] = ()
    """learning rates of parameter groups, as prefix=rate, e.g. condenser=1e-5"""
    weight_decay: float = 1e-5
    """weight decay of AdamW"""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """plateau: lower the rate when the monitored value stops improving; cosine: cosine decay to min-lr"""
    warmup: float = 0.0
    """cosine: number of warm-up epochs, in which the rate rises from 0"""
    plateau_factor: float = 0.5
    """plateau: factor by which the learning rate is multiplied"""
    plateau_patience: int = 5
    """plateau: epochs without improvement before the learning rate is lowered"""
    min_lr: float = 0.0
    """minimum learning rate"""
    clip: float | None = None
    """maximum gradient norm; no clipping by default"""
    monitor: Literal["loss", "auroc", "qwk"] = "loss"
    """value on the validation slides that decides the plateau schedule, early stopping and the best weights; the loss
    breaks ties"""
    early_stop: int | None = 15
    """epochs without improvement before training stops; None: never"""
    seed: int = 0
    """random seed of weights, batches, noise and dropout"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed precision mode of Accelerate"""
    checkpoint_every: int = 5
    """epochs between checkpoints; a run that is killed loses at most this many"""

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
        """{prefix of parameter names: learning rate} from `group_lr`. Raises ConfigError for other text."""
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


RECIPES = {
    "abbe": Recipe(),
    # The scripts of the TC-SSA authors; 50, 20 or 100 epochs depending on the data set. See docs/classify.md.
    "tcssa-mil": Recipe(epochs=50, lr=1e-4, min_lr=1e-6, monitor="auroc"),
}
"""Named recipes, for `--recipe NAME`; single options override them."""
