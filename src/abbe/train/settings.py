"""Settings of training. Imports nothing heavy, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from abbe.condensers import list_condensers
from abbe.models.config import Pooling
from abbe.train.recipe import Recipe

DEFAULT_TOKENS = 32
CondenserTrain = Literal["joint", "frozen"]
ClassWeight = Literal["none", "balanced"]
Sampling = Literal["shuffle", "balanced"]


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """Settings of a classifier and its training."""

    condenser: Annotated[str, arg(metavar="|".join(list_condensers()))] = "tcssa"
    """method that condenses the patches of a slide"""
    tokens: int | float | None = None
    """token budget: a count, or a keep rate in (0, 1]; default: that of --condenser-init, or 32"""
    condenser_options: tuple[str, ...] = ()
    """additional options of the condenser, as name=value, e.g. aux_weight=0.01"""
    condenser_init: str | None = None
    """classifier (folder or hub id) to initialise the condenser and the feature scale from"""
    condenser_train: CondenserTrain = "joint"
    """joint: train the condenser with the head; frozen: keep the weights of --condenser-init"""
    pooling: Pooling = "mean"
    """how the head pools tokens; abmil, clam, dsmil and transmil come from torchmil"""
    standardize: bool = True
    """scale features to zero mean and unit variance on the training patches; --no-standardize does not scale them"""
    class_weight: ClassWeight = "none"
    """balanced: weight each class in the loss by the inverse of its share of the training slides"""
    sampling: Sampling = "shuffle"
    """balanced: draw training slides with replacement, so that all classes are equally frequent"""
    recipe: Recipe = field(default_factory=Recipe)
    """how the model is trained; --recipe NAME starts from a named recipe: abbe, or tcssa-mil"""
