"""The configuration of a classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from abbe.errors import ConfigError

Pooling = Literal["mean", "attention", "summary", "abmil", "clam", "dsmil", "transmil"]
Norm = Literal["pooled", "tokens"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything needed to build a classifier again.

    dim: width of the features.   encoder: the patch encoder.
    norm: the head's LayerNorm is on the pooled vector, as published, or on each token, as in models of format 1. On the
    tokens it cancels what a condenser does to their size.
    """

    since: ClassVar[dict[int, dict[str, Any]]] = {2: {"norm": "tokens"}}
    """{format version: {field it added: its value in models saved before}}"""

    dim: int
    classes: tuple[str, ...]
    condenser: str = "tcssa"
    condenser_options: dict[str, Any] = field(default_factory=dict)
    pooling: Pooling = "mean"
    hidden: int = 512
    dropout: float = 0.3
    encoder: str | None = None
    norm: Norm = "pooled"

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
