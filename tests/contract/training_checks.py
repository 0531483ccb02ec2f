"""The contract of a condenser in training: gradients and precision."""

from __future__ import annotations

from collections.abc import Callable

import torch

from abbe.condensers.base import Condenser
from abbe.types import TokenBatch
from builders import make_batch
from contract.promise import DIM, LENGTHS, check, make, run


@check
def every_trainable_parameter_gets_a_gradient_on_every_step(cls: type[Condenser], name: str) -> None:
    """A method has parameters if it is `trainable`; each is in the graph on every step and gets a gradient."""
    condenser = make(cls, name).train()
    parameters = dict(condenser.named_parameters())
    assert bool(parameters) == cls.trainable, f"trainable={cls.trainable}, parameters: {list(parameters)}"
    for lengths in ([1], LENGTHS):
        condenser.zero_grad()
        condensed = run(condenser, make_batch(lengths, dim=DIM), predictions=True)
        outputs = [condensed.tokens.features, *condensed.predictions.values()]  # a model's heads supervise both
        loss = torch.stack([(value * torch.randn_like(value)).sum() for value in outputs]).sum()
        if cls.trainable:
            (loss + sum(condensed.losses.values())).backward()
        missing = [key for key, parameter in parameters.items() if parameter.grad is None]
        assert not missing, f"slides of {lengths} patches: no gradient for {missing}"
        if lengths == LENGTHS:
            zero = [key for key, parameter in parameters.items() if not parameter.grad.any()]  # type: ignore[union-attr]
            assert not zero, f"slides of {lengths} patches: the gradient is zero for {zero}"


@check
def gradient_reaches_the_features(cls: type[Condenser], name: str) -> None:
    """The tokens' gradient reaches the features of every kept patch, and of no other unless `changes_features`."""
    batch = make_batch(LENGTHS, dim=DIM)
    features = batch.features.clone().requires_grad_()
    condensed = run(make(cls, name), TokenBatch(**{**vars(batch), "features": features}))
    condensed.tokens.features.square().sum().backward()
    assert features.grad is not None, "no gradient reaches the features"
    kept = (condensed.assignment.index >= 0).any(1)
    reached = features.grad.any(1)
    assert bool(reached[kept].all()), f"no gradient for kept rows {(kept & ~reached).nonzero()[:, 0].tolist()}"
    if not cls.changes_features:
        assert not reached[~kept].any(), f"gradient for dropped rows {(reached & ~kept).nonzero()[:, 0].tolist()}"


@check
def it_trains_in_bf16(cls: type[Condenser], name: str) -> None:
    """A trainable method trains under bf16 autocast, and with weights and features in bf16."""
    if cls.trainable:
        trains_in_bf16(lambda: make(cls, name))


def trains_in_bf16(build: Callable[[], Condenser]) -> None:
    """Under autocast with float32 weights, and with weights and features in bf16."""
    batch = make_batch([40, 9, 1], dim=DIM)
    for dtype in (torch.float32, torch.bfloat16):
        condenser = build().to(dtype).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            condensed = condenser(batch.to(dtype=dtype), predictions=True)
        assert condensed.tokens.features.dtype == dtype, f"tokens of {dtype} features in training"
        outputs = [condensed.tokens.features, *condensed.predictions.values()]
        torch.stack([value.float().square().sum() for value in outputs]).sum().backward()
        for key, parameter in condenser.named_parameters():
            assert parameter.grad is not None, f"{dtype}: no gradient for {key}"
            assert bool(torch.isfinite(parameter.grad).all()), f"{dtype}: the gradient of {key} is not finite"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            evaluated = condenser.eval()(batch.to(dtype=dtype)).tokens.features.dtype
        assert evaluated == dtype, f"tokens of {dtype} features in eval"
