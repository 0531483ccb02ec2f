"""torchmil's pooling behind our output layer: any number of classes if the method allows it, one slide at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from abbe.errors import ConfigError, InputError
from abbe.models.torchmil_heads import HEADS, TorchMILHead
from builders import make_batch

pytest.importorskip("torchmil", reason="torchmil is not installed")
LENGTHS = [9, 1, 40]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("classes", [2, 3])
def test_logits_gradients_and_a_slide_alone(name: str, classes: int) -> None:
    if name == "dsmil" and classes == 3:
        with pytest.raises(ConfigError, match="two classes, not 3; use abmil, clam or transmil"):
            TorchMILHead(name, width=16, classes=classes)
        return
    head, batch = TorchMILHead(name, width=16, classes=classes, hidden=16).train(), make_batch(LENGTHS)
    pooled = head(batch)
    assert pooled.logits.shape == (3, classes)
    loss = pooled.logits.square().sum()
    if not (name == "clam" and classes == 3):
        loss = loss + head.instance_loss(batch, pooled, torch.tensor([0, 1, 1]))
    loss.backward()
    for key, parameter in head.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    head.eval()
    for b in range(3):
        torch.testing.assert_close(head(batch[b]).logits[0], head(batch).logits[b], atol=1e-5, rtol=0)


def test_masked_tokens_leave_no_trace() -> None:
    batch = make_batch([6])
    mask = torch.tensor([True, False, True, True, True, True])
    head = TorchMILHead("abmil", width=16, classes=2).eval()
    results = [head(replace(batch, features=torch.where(mask[:, None], batch.features, x), mask=mask)) for x in (0, 9)]
    assert torch.equal(results[0].logits, results[1].logits)
    weights = results[0].attention.detach().softmax(0)
    assert float(weights[1]) == 0
    torch.testing.assert_close(results[0].vectors[0], weights @ batch.features)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"unknown head 'abmill'\. Did you mean 'abmil'"):
        TorchMILHead("abmill", width=4, classes=2)
    head, batch = TorchMILHead("clam", width=16, classes=3), make_batch([4])
    with pytest.raises(InputError, match="soft weights"):
        head(replace(batch, weight=batch.weight / 2))
    with pytest.raises(InputError, match="'slide0' has no valid token"):
        head(replace(batch, mask=torch.zeros(4, dtype=torch.bool)))
    with pytest.raises(ConfigError, match="made for two classes, not 3"):
        head.instance_loss(batch, head(batch), torch.tensor([2]))
