"""Warm start: continue training the condenser of another classifier, or freeze it and train a new head.

The feature scale is copied with the condenser. The head and the auxiliary heads are newly initialised.
Sources: the TC-SSA paper trains jointly; its README freezes the condenser of a classifier.
"""

from __future__ import annotations

from abbe.errors import CheckpointError, ConfigError
from abbe.models.classifier import Classifier
from abbe.models.hub import load
from abbe.store.aliases import same_encoder
from abbe.train.settings import CondenserTrain


def check_frozen(train: CondenserTrain, init: str | None) -> None:
    """Raise ConfigError for a frozen condenser without trained weights."""
    if train == "frozen" and init is None:
        raise ConfigError(
            "--condenser-train frozen needs --condenser-init; otherwise the condenser would keep random weights. Give "
            "the classifier whose condenser to use"
        )


def starting_model(
    init: str, condenser: str, *, width: int, encoder: str | None, standardize: bool = True
) -> Classifier:
    """The model named by --condenser-init, for features of this width and encoder.

    Raises CheckpointError if it cannot be loaded, and ConfigError if its condenser is another method or has no
    weights, or if it was trained on other features.
    """
    start = load(init)
    config = start.config
    if config.condenser != condenser:
        raise ConfigError(
            f"--condenser-init {init}: its condenser is {config.condenser!r}, not {condenser!r}; "
            f"give --condenser {config.condenser}, or another model"
        )
    if not start.condenser.trainable:
        raise ConfigError(f"--condenser-init {init}: {condenser!r} has no trainable weights; remove --condenser-init")
    if config.dim != width:
        raise ConfigError(f"--condenser-init {init}: trained on features of width {config.dim}, these have {width}")
    if config.encoder is not None and encoder is not None and not same_encoder(config.encoder, encoder):
        raise ConfigError(
            f"--condenser-init {init}: trained on features of {config.encoder}, but these are from {encoder}"
        )
    unscaled = bool((start.scaler.centre == 0).all()) and bool((start.scaler.spread == 1).all())
    if not standardize and not unscaled:
        raise ConfigError(
            f"--condenser-init {init}: its condenser was trained on standardised features; remove --no-standardize"
        )
    return start


def take_over(model: Classifier, start: Classifier, *, frozen: bool = False) -> None:
    """Copy the condenser and the feature scale of `start` to `model`; `frozen` also freezes the condenser.

    Raises CheckpointError if the weights do not fit the options of the model's condenser.
    """
    try:
        model.condenser.load_state_dict(start.condenser.state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            f"--condenser-init: weights of {start.config.condenser} with {start.config.condenser_options} do not fit "
            f"the options {model.config.condenser_options}; use the same tokens and options ({_reason(error)})"
        ) from error
    model.scaler.load_state_dict(start.scaler.state_dict())
    if frozen:
        model.freeze_condenser()


def _reason(error: Exception) -> str:
    """The last line of torch's message, shortened."""
    line = str(error).strip().splitlines()[-1].strip()
    return line if len(line) < 160 else f"{line[:160]} …"
