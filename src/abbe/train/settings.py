"""What is trained, and how. Imports nothing heavy, so that `--help` costs little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from abbe.condensers import list_condensers
from abbe.models.config import Pooling
from abbe.train.recipe import Recipe

DEFAULT_TOKENS = 32
CondenserTrain = Literal["joint", "frozen"]


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """What is trained, and how."""

    condenser: Annotated[str, arg(metavar="|".join(list_condensers()))] = "tcssa"
    """method that condenses a slide's patches"""
    tokens: int | float | None = None
    """budget: a count, or a keep rate in (0, 1]; 32, or what --condenser-init has, unless given"""
    condenser_options: tuple[str, ...] = ()
    """further options of the condenser, as name=value, e.g. aux_weight=0.01"""
    condenser_init: str | None = None
    """classifier (folder or hub id) whose condenser, with its scale of features, this one starts from"""
    condenser_train: CondenserTrain = "joint"
    """joint: the condenser learns with the head; frozen: it stays as --condenser-init gave it"""
    pooling: Pooling = "mean"
    """how the head pools tokens; abmil, clam, dsmil and transmil are torchmil's"""
    standardize: bool = True
    """bring features to zero mean and unit spread by the training patches; --no-standardize takes them as they are"""
    recipe: Recipe = field(default_factory=Recipe)
    """how the model is trained"""
