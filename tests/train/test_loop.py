"""The loop takes any batch: a small regression learns; parts equal the whole; what is monitored decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from abbe.condensers.base import Condenser
from abbe.condensers.sparselearn import SparseLearn
from abbe.errors import CheckpointError, ConfigError
from abbe.train.loop import DivergedError, Step, fit
from abbe.train.recipe import Recipe


@dataclass
class Pairs:
    """A batch that has nothing to do with slides; its loss is divided by the numbers of `weight`."""

    x: Tensor
    y: Tensor
    weight: Tensor

    @property
    def count(self) -> int:
        return int(self.weight.sum())

    def to(self, device: torch.device | str) -> Pairs:
        return Pairs(self.x.to(device), self.y.to(device), self.weight.to(device))


class Points(Dataset[tuple[Tensor, Tensor, int]]):
    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 3, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, int]:
        return self.x[row], self.y[row], 1 + row % 3


class Regression:
    """Weighted squares; `auroc` is whatever the test says, epoch by epoch."""

    def __init__(self, auroc: Sequence[float] = ()) -> None:
        self.auroc = list(auroc)

    def collate(self, samples: Sequence[tuple[Tensor, Tensor, int]]) -> Pairs:
        x, y, weight = zip(*samples, strict=True)
        return Pairs(torch.stack(x), torch.stack(y), torch.tensor(weight))

    def __call__(self, model: nn.Module, batch: Pairs) -> Step:
        squares = (model(batch.x).squeeze(1) - batch.y).square() * batch.weight
        return Step(squares.sum(), squares.sum(), outputs={"x": batch.x})

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        assert len(outputs["x"]) == 12  # every validation point, whatever the batches
        return {"auroc": self.auroc.pop(0)} if self.auroc else {}


def run(
    recipe: Recipe, objective: Regression | None = None, **options: object
) -> tuple[nn.Module, list[dict[str, float]]]:
    return fit(
        lambda: nn.Linear(3, 1), objective or Regression(), Points(30, 0), Points(12, 1), recipe, cpu=True, **options
    )  # type: ignore[arg-type]


def test_any_batch_is_learned_from() -> None:
    model, history = run(Recipe(epochs=60, lr=0.1, batch_size=8))
    assert history[-1]["val_task"] < 1e-3 < history[0]["val_task"]
    assert isinstance(model, nn.Linear)
    assert model.weight[0].tolist() == pytest.approx([1.0, -2.0, 0.5], abs=0.05)


@pytest.mark.parametrize("parts", [2, 3, 8, 50])
def test_a_batch_in_parts_takes_the_same_step(parts: int) -> None:
    whole, history = run(Recipe(epochs=3, lr=0.1, batch_size=8))
    divided, same = run(Recipe(epochs=3, lr=0.1, batch_size=8, accumulate=parts))
    assert [row["loss"] for row in same] == pytest.approx([row["loss"] for row in history], rel=1e-5)
    for one, other in zip(whole.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_is_clipped() -> None:
    _, free = run(Recipe(epochs=1, lr=0.1, weight_decay=0.0))
    seen: list[float] = []
    plain = nn.utils.clip_grad_norm_

    class Watched(Regression):
        def __call__(self, model: nn.Module, batch: Pairs) -> Step:
            if model.training:
                model.weight.register_hook(lambda grad: seen.append(float(grad.norm())))
            return super().__call__(model, batch)

    _, clipped = run(Recipe(epochs=1, lr=0.1, weight_decay=0.0, clip=1e-12), Watched())
    assert max(seen) > 0.1  # before clipping
    # AdamW divides by the size of the gradient, unless that is below its eps: then hardly anything moves.
    assert clipped[0]["val_task"] > free[0]["val_task"]
    assert plain is nn.utils.clip_grad_norm_


def test_the_weights_of_the_best_monitored_epoch_are_kept_and_ties_go_to_the_lower_loss() -> None:
    recipe = Recipe(epochs=4, lr=0.1, batch_size=8, monitor="auroc", schedule="constant")
    for auroc, best in (([0.5, 0.9, 0.7, 0.8], 1), ([0.5, 0.8, 0.8, 0.8], 3)):
        model, _ = run(recipe, Regression(auroc))
        expected, history = run(Recipe(epochs=best + 1, lr=0.1, batch_size=8, schedule="constant", early_stop=None))
        assert min(history, key=lambda row: row["val_task"])["epoch"] == best
        for one, other in zip(model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


def test_what_is_not_measured_cannot_be_monitored() -> None:
    with pytest.raises(ConfigError, match=r"--recipe.monitor auroc is not computed.* available: loss, task"):
        run(Recipe(epochs=1, monitor="auroc"))


def test_training_stops_early_or_never() -> None:
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    _, history = run(Recipe(epochs=6, monitor="auroc", early_stop=2), Regression(falling))
    assert len(history) == 3
    _, history = run(Recipe(epochs=6, monitor="auroc", early_stop=None), Regression(falling))
    assert len(history) == 6


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "constant"])
def test_stopped_and_resumed_is_bitwise_the_same(schedule: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=6, lr=0.1, batch_size=8, schedule=schedule, checkpoint_every=1, accumulate=2, clip=1.0)  # type: ignore[arg-type]
    whole, history = run(recipe, folder=tmp_path / "whole")

    class Stopping(Regression):
        def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
            self.epochs = getattr(self, "epochs", 0) + 1
            if self.epochs == 4:
                raise KeyboardInterrupt
            return {}

    with pytest.raises(KeyboardInterrupt):
        run(recipe, Stopping(), folder=tmp_path / "stopped")
    again, resumed = run(recipe, folder=tmp_path / "stopped")
    assert resumed == history
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(Recipe(epochs=1, checkpoint_every=1), folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"made with other settings \(lr is 0.0003 there and 0.001 here\)"):
        run(Recipe(epochs=1, checkpoint_every=1, lr=1e-3), folder=tmp_path)


class Scheduled(nn.Module):
    """A linear layer beside a method with a schedule, as a classifier has them."""

    def __init__(self) -> None:
        super().__init__()
        self.condenser = SparseLearn(dim=3, tokens=2, context="none", scorer_width=4, heads=1)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def test_a_method_with_a_schedule_is_trained_to_its_end_and_chosen_only_once_settled() -> None:
    aurocs = [0.99, *[0.5] * 17, 0.6, 0.55]  # the best epochs by far come before the temperature has fallen
    recipe = Recipe(epochs=20, lr=0.1, batch_size=8, monitor="auroc", schedule="constant", early_stop=2)
    model, history = fit(Scheduled, Regression(aurocs), Points(30, 0), Points(12, 1), recipe, cpu=True)  # type: ignore[arg-type]
    assert len(history) == 20
    assert isinstance(model, Scheduled)
    assert float(model.condenser.tau) <= 2 * model.condenser.tau_end
    assert float(model.condenser.progress) == pytest.approx(18.75 / 20)  # the last step of epoch 18


def test_a_schedule_that_never_settles_ends_with_its_last_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseLearn, "settled", property(lambda _: False))
    model, _ = fit(Scheduled, Regression(), Points(30, 0), Points(12, 1), Recipe(epochs=2), cpu=True)
    assert isinstance(model, Scheduled)
    assert float(model.condenser.progress) > 0.5


def test_only_methods_that_change_over_training_have_a_schedule() -> None:
    assert SparseLearn(dim=4).has_schedule
    assert not Condenser(dim=4).has_schedule
    assert Condenser(dim=4).settled


def test_weights_that_are_not_finite_stop_the_run_before_they_are_kept(tmp_path: Path) -> None:
    class Breaking(Regression):
        def __call__(self, model: nn.Module, batch: Pairs) -> Step:
            step = super().__call__(model, batch)
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 10:  # four steps and two validation batches, then the last step of the second epoch
                with torch.no_grad():
                    model.bias.fill_(torch.nan)
            return step

    recipe = Recipe(epochs=4, batch_size=8, checkpoint_every=1)
    with pytest.raises(DivergedError, match=r"the weights bias are no longer finite after epoch 1; try a lower"):
        run(recipe, Breaking(), folder=tmp_path)
    _, history = run(recipe, folder=tmp_path)  # goes on from the first epoch's checkpoint
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]
