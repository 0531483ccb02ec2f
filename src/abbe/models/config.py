"""The configuration of a classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from abbe.errors import ConfigError

Pooling = Literal["mean", "attention", "summary", "abmil", "clam", "dsmil", "transmil"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything needed to build a classifier again. dim: width of the features.   encoder: the patch encoder."""

    dim: int
    classes: tuple[str, ...]
    condenser: str = "tcssa"
    condenser_options: dict[str, Any] = field(default_factory=dict)
    pooling: Pooling = "mean"
    hidden: int = 512
    dropout: float = 0.3
    encoder: str | None = None

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ConfigError(f"a classifier needs at least two classes, got {list(self.classes)}")
        if self.pooling not in get_args(Pooling):
            raise ConfigError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {self.pooling!r}")
        if self.pooling == "clam" and len(self.classes) > 2:
            raise ConfigError(
                f"pooling 'clam': torchmil's instance classifiers are made for two classes, not {len(self.classes)}; "
                "abmil is the same pooling without them"
            )
