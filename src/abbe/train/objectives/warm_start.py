"""Starting from another model's condenser: to go on with it, or to keep it as it is under a new head.

The condenser was trained on features of one scale, so the scale comes with it; the head, and heads of the condenser's
own predictions, begin anew. Sources: TC-SSA trains jointly; its README takes a classifier's condenser and freezes it.
"""

from __future__ import annotations

from abbe.errors import CheckpointError, ConfigError
from abbe.models.classifier import Classifier
from abbe.models.hub import load
from abbe.store.aliases import same_encoder
from abbe.train.settings import CondenserTrain


def check_frozen(train: CondenserTrain, init: str | None) -> None:
    """Raise ConfigError for a condenser that would stay as it was drawn."""
    if train == "frozen" and init is None:
        raise ConfigError(
            "--condenser-train frozen: a condenser that never learned would stay as it was drawn; say with "
            "--condenser-init which classifier's condenser to keep"
        )


def starting_model(
    init: str, condenser: str, *, width: int, encoder: str | None, standardize: bool = True
) -> Classifier:
    """The model named by --condenser-init, for features of this width and encoder.

    Raises CheckpointError where it cannot be loaded, ConfigError where its condenser is another, has no weights, or was
    made for other features.
    """
    start = load(init)
    config = start.config
    if config.condenser != condenser:
        raise ConfigError(
            f"--condenser-init {init}: its condenser is {config.condenser!r}, not {condenser!r}; "
            f"give --condenser {config.condenser}, or another model"
        )
    if not start.condenser.trainable:
        raise ConfigError(f"--condenser-init {init}: {condenser!r} has no weights to start from; leave the option out")
    if config.dim != width:
        raise ConfigError(f"--condenser-init {init}: made for features {config.dim} wide, these are {width} wide")
    if config.encoder is not None and encoder is not None and not same_encoder(config.encoder, encoder):
        raise ConfigError(f"--condenser-init {init}: made for features of {config.encoder}, these are of {encoder}")
    unscaled = bool((start.scaler.centre == 0).all()) and bool((start.scaler.spread == 1).all())
    if not standardize and not unscaled:
        raise ConfigError(
            f"--condenser-init {init}: its condenser learned on features brought to one scale, which comes with it; "
            "leave --no-standardize out"
        )
    return start


def take_over(model: Classifier, start: Classifier, *, frozen: bool = False) -> None:
    """Give `model` the condenser and the scale of features of `start`; frozen: and keep them.

    Raises CheckpointError where the weights do not fit the options of model's condenser.
    """
    try:
        model.condenser.load_state_dict(start.condenser.state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            f"--condenser-init: weights of {start.config.condenser} with {start.config.condenser_options} do not fit "
            f"one with {model.config.condenser_options}; give the same tokens and options ({_reason(error)})"
        ) from error
    model.scaler.load_state_dict(start.scaler.state_dict())
    if frozen:
        model.freeze_condenser()


def _reason(error: Exception) -> str:
    """The last line of torch's list of what does not fit, and not all of it."""
    line = str(error).strip().splitlines()[-1].strip()
    return line if len(line) < 160 else f"{line[:160]} …"
