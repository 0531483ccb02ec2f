"""The one training loop. What is learned is an objective; how it is trained is a recipe.

Accelerate places and steps; it does not save (it pickles): `checkpoint.py` does. A loss is a sum over slides divided by
the number of slides in the whole batch, over all processes, so that several processes equal one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from abbe.cohorts.dataset import Batches, Labelled, SlideDataset, collate
from abbe.condensers.base import Condenser
from abbe.console import progress
from abbe.errors import AbbeError, CheckpointError
from abbe.train import checkpoint


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of the TC-SSA authors' MIL code."""

    epochs: int = 60
    """at most this many passes over the training slides"""
    batch_size: int = 8
    """slides a step, over all processes"""
    lr: float = 1e-4
    """learning rate of AdamW"""
    weight_decay: float = 1e-5
    """weight decay of AdamW"""
    plateau_factor: float = 0.5
    """the learning rate is multiplied by this when the validation loss has stopped falling"""
    plateau_patience: int = 5
    """epochs without a lower validation loss before that"""
    early_stop: int = 15
    """epochs without a lower validation loss before training stops"""
    seed: int = 0
    """of weights, batches, noise and dropout"""
    precision: str = "no"
    """no | bf16 | fp16, as Accelerate names them"""
    checkpoint_every: int = 5
    """epochs between checkpoints; a run that is killed loses at most these"""


@dataclass
class Step:
    """What an objective gives for one batch.

    loss_sum: scalar, what is minimised, *summed* over the batch's slides.
    task_sum: scalar, the task's part of it; training stops and the best weights are chosen by this one on validation
        slides, so that runs which differ in their regularisers are judged by the same measure.
    slides: their number.   figures: means over the batch's slides, recorded in the history.
    """

    loss_sum: Tensor
    task_sum: Tensor
    slides: int
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What is learned: a loss from a model and a batch."""

    def __call__(self, model: nn.Module, batch: Labelled) -> Step: ...


class DivergedError(AbbeError):
    """The loss became NaN or infinite."""


# Made again by the schedule's constructor, and not JSON (an infinity) or not needed.
_SCHEDULE_CONSTANTS = {"mode_worse", "_last_lr"}


@dataclass
class _Progress:
    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    build: Callable[[], nn.Module],
    objective: Objective,
    train: SlideDataset,
    val: SlideDataset,
    recipe: Recipe,
    *,
    folder: Path | None = None,
    resume: bool = True,
    cpu: bool = False,
    description: str = "training",
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train what `build` makes; return it with the weights of its best validation loss, and one row an epoch.

    build: called after seeding, so that the seed decides the initial weights too.
    folder: where checkpoints go; none are written without it. resume: go on from the one there; in one process this is
    bit for bit the run that was not stopped.

    Raises DivergedError for a loss that is not finite, CheckpointError for a checkpoint that is not whole.
    """
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=cpu)
    set_seed(recipe.seed)
    bare = build()
    if accelerator.process_index:  # same weights everywhere, but noise and dropout of its own in each process
        torch.manual_seed(recipe.seed + accelerator.process_index)
    # Fused: one pass over each parameter; the slots' experts have millions of them.
    optimizer = torch.optim.AdamW(bare.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    trainable = any(parameter.requires_grad for parameter in bare.parameters())
    model, optimizer = accelerator.prepare(bare, optimizer)
    schedule = ReduceLROnPlateau(optimizer, factor=recipe.plateau_factor, patience=recipe.plateau_patience)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = Batches(len(train), recipe.batch_size, seed=recipe.seed, rank=rank, world=world)
    train_loader = DataLoader(train, batch_sampler=batches, collate_fn=collate)
    val_batches = Batches(len(val), recipe.batch_size, seed=None, rank=rank, world=world)
    val_loader = DataLoader(val, batch_sampler=val_batches, collate_fn=collate)

    at = _Progress()
    best = _copy_of(bare)
    if folder is not None and resume and (found := checkpoint.load(folder)) is not None:
        at, best = _restore(found, folder, bare, optimizer, schedule, recipe)
        if rank:  # the checkpoint holds the main process's generator; the others start a new stream
            torch.manual_seed(recipe.seed + rank + 1000 * at.epoch)

    with progress(description, recipe.epochs) as bar:
        bar.update(bar.task_ids[0], completed=at.epoch)
        while trainable and at.epoch < recipe.epochs and at.epoch - 1 - at.best_epoch < recipe.early_stop:
            batches.epoch = at.epoch
            row: dict[str, float] = {"epoch": at.epoch, "lr": optimizer.param_groups[0]["lr"]}
            row |= _train_epoch(model, objective, train_loader, optimizer, accelerator, at.epoch, recipe.epochs)
            row |= {
                f"val_{name}": value for name, value in _mean_losses(model, objective, val_loader, accelerator).items()
            }
            schedule.step(row["val_task"])
            at.history.append(row)
            if row["val_task"] < at.best_loss:
                at.best_loss, at.best_epoch = row["val_task"], at.epoch
                best = _copy_of(bare)
            at.epoch += 1
            if folder is not None and accelerator.is_main_process and at.epoch % recipe.checkpoint_every == 0:
                _checkpoint(folder, at, best, bare, optimizer, schedule, recipe)
            bar.update(
                bar.task_ids[0], completed=at.epoch, description=f"{description}, val loss {row['val_task']:.3f}"
            )
    bare.load_state_dict(best)
    return bare.cpu().eval(), at.history


def _train_epoch(
    model: nn.Module,
    objective: Objective,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    epoch: int,
    epochs: int,
) -> dict[str, float]:
    model.train()
    sums: dict[str, float] = {}
    slides = 0
    # One that is frozen is in eval mode here too, and past all schedules.
    condensers = [module for module in model.modules() if isinstance(module, Condenser) and module.training]
    for number, batch in enumerate(loader):
        for condenser in condensers:
            condenser.set_progress((epoch + number / len(loader)) / epochs)
        with accelerator.autocast():
            step = objective(model, batch.to(accelerator.device))
        # Processes average gradients; their losses are sums. World / global count turns the one into the other.
        share = _total(step.slides, accelerator)
        loss = step.loss_sum * (accelerator.num_processes / share)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        _accumulate(sums, step)
        slides += step.slides
    figures = _reduced(sums, slides, accelerator)
    if not math.isfinite(figures["loss"]):
        raise DivergedError(f"the training loss became {figures['loss']} in epoch {epoch}; try a lower learning rate")
    return figures


@torch.no_grad()
def _mean_losses(
    model: nn.Module, objective: Objective, loader: DataLoader[Any], accelerator: Accelerator
) -> dict[str, float]:
    model.eval()
    sums: dict[str, float] = {}
    slides = 0
    for batch in loader:
        step = objective(model, batch.to(accelerator.device))
        _accumulate(sums, step)
        slides += step.slides
    return _reduced(sums, slides, accelerator)


def _accumulate(sums: dict[str, float], step: Step) -> None:
    for name, total in (("loss", step.loss_sum), ("task", step.task_sum)):
        sums[name] = sums.get(name, 0.0) + float(total.detach())
    for name, value in step.figures.items():
        sums[name] = sums.get(name, 0.0) + float(value) * step.slides


def _reduced(sums: dict[str, float], slides: int, accelerator: Accelerator) -> dict[str, float]:
    total = _total(slides, accelerator)
    return {name: _total(value, accelerator) / total for name, value in sums.items()}


def _total(value: float, accelerator: Accelerator) -> float:
    if accelerator.num_processes == 1:
        return value
    counted = torch.tensor(float(value), dtype=torch.float64 if accelerator.device.type != "mps" else torch.float32)
    return float(accelerator.reduce(counted.to(accelerator.device), reduction="sum"))


def _copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _checkpoint(
    folder: Path,
    at: _Progress,
    best: dict[str, Tensor],
    model: nn.Module,
    optimizer: Any,
    schedule: ReduceLROnPlateau,
    recipe: Recipe,
) -> None:
    tensors, groups = checkpoint.optimizer_state(optimizer.optimizer)
    tensors |= {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    tensors["random/cpu"] = torch.get_rng_state()
    for device in range(torch.cuda.device_count()):
        tensors[f"random/cuda{device}"] = torch.cuda.get_rng_state(device)
    values = {
        "epoch": at.epoch,
        "best_loss": at.best_loss if math.isfinite(at.best_loss) else None,
        "best_epoch": at.best_epoch,
        "history": at.history,
        "schedule": {key: value for key, value in schedule.state_dict().items() if key not in _SCHEDULE_CONSTANTS},
        "optimizer": groups,
        "recipe": vars(recipe),
    }
    checkpoint.save(folder, tensors, values)


def _restore(
    found: tuple[dict[str, Tensor], dict[str, Any]],
    folder: Path,
    model: nn.Module,
    optimizer: Any,
    schedule: ReduceLROnPlateau,
    recipe: Recipe,
) -> tuple[_Progress, dict[str, Tensor]]:
    tensors, values = found
    for key, value in vars(recipe).items():
        if key not in ("epochs", "checkpoint_every") and values["recipe"].get(key) != value:
            raise CheckpointError(
                f"{folder}: the checkpoint was made with {key}={values['recipe'].get(key)!r}, this run says {value!r}; "
                "use the same settings, another folder, or --no-resume"
            )

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("model/"))
    checkpoint.restore_optimizer(optimizer.optimizer, tensors, values["optimizer"])
    schedule.load_state_dict(values["schedule"])
    torch.set_rng_state(tensors["random/cpu"])
    for device in range(torch.cuda.device_count()):
        if f"random/cuda{device}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random/cuda{device}"], device)
    best_loss = math.inf if values["best_loss"] is None else values["best_loss"]
    return _Progress(values["epoch"], best_loss, values["best_epoch"], values["history"]), part("best/")
