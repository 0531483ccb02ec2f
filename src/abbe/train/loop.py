"""The training loop. An objective defines the loss; a recipe defines the training settings.

Accelerate handles devices and processes. `checkpoint.py` saves, because Accelerate would pickle. A loss is summed over
slides (or answer tokens) and divided by their number in the batch of all processes, so that the number of processes
does not change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import abbe.train.processes  # noqa: F401  must be imported before the process group exists
from abbe.condensers.base import Condenser
from abbe.console import progress
from abbe.data.dataset import Batches
from abbe.errors import AbbeError, ConfigError, InputError
from abbe.train import checkpoint
from abbe.train.optim import Schedule, make_optimizer
from abbe.train.recipe import Recipe


class Batch(Protocol):
    """Input of an objective: it can be moved to a device and knows the number that its loss is divided by."""

    @property
    def count(self) -> int:
        """Number of slides, or answer tokens."""

    def to(self, device: torch.device | str) -> Any: ...


B = TypeVar("B", bound=Batch)
S = TypeVar("S", contravariant=True)


@dataclass
class Step:
    """Output of an objective for one batch.

    loss_sum: scalar, the loss to minimise, *summed* over the slides (or answer tokens) of the batch.
    task_sum: scalar, the task loss without regularisers. On validation slides it decides early stopping and the best
        weights, so that runs with different regularisers are compared by the same measure.
    metrics: means over the batch, recorded in the history.
    outputs: {name: one row per slide}; on validation slides they are collected for `Objective.metrics`.
    """

    loss_sum: Tensor
    task_sum: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol[S, B]):
    """Makes batches from samples, computes the loss of a batch, and the metrics of all validation slides."""

    def collate(self, samples: Sequence[S]) -> B:
        """Make one batch from samples of the data set."""

    def __call__(self, model: nn.Module, batch: B) -> Step:
        """The loss of one batch."""

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of the validation set from the outputs of all its batches; `Recipe.monitor` names one of them."""


class DivergedError(AbbeError):
    """The loss or the weights became NaN or infinite."""


@dataclass
class _Progress:
    epoch: int = 0
    best: tuple[float, float] = (math.inf, math.inf)  # the monitored value, lower is better; then the loss
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)

    def stopped(self, recipe: Recipe) -> bool:
        return recipe.early_stop is not None and self.epoch - 1 - self.best_epoch >= recipe.early_stop


def fit(
    build: Callable[[], nn.Module],
    objective: Objective[S, B],
    train: Dataset[S],
    val: Dataset[S],
    recipe: Recipe,
    *,
    folder: Path | None = None,
    resume: bool = True,
    cpu: bool = False,
    sampling: Sequence[float] | None = None,
    description: str = "training",
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train the model that `build` returns. Returns it with its best weights on the validation slides, and the history.

    The history has one row per epoch.
    build: called after seeding, so that the seed also sets the initial weights.
    folder: folder of checkpoints; without it none are written.
    sampling: weight of each training sample; an epoch draws as many samples with replacement. None: each sample once.
    resume: resume from the checkpoint in `folder`; in one process the result is bit-identical to an uninterrupted run.

    A condenser with a training schedule is trained to the end of the schedule: early stopping is off, and only epochs
    in which the condenser is `settled` can have the best weights or lower the rate on a plateau. Before that,
    validation measures hard selection with weights that are still trained for a soft one.

    Raises DivergedError for a loss or weights that are not finite, CheckpointError for a damaged checkpoint.
    """
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=cpu)
    set_seed(recipe.seed)
    bare = build()
    if accelerator.process_index:  # same weights in all processes, but different noise and dropout
        torch.manual_seed(recipe.seed + accelerator.process_index)
    trainable = any(parameter.requires_grad for parameter in bare.parameters())
    condensers = [module for module in bare.modules() if isinstance(module, Condenser)]
    scheduled = [condenser for condenser in condensers if condenser.has_schedule and _learns(condenser)]
    model, optimizer = accelerator.prepare(bare, make_optimizer(bare, recipe))
    rank, world = accelerator.process_index, accelerator.num_processes
    size, parts = recipe.batch_size, recipe.accumulate
    batches = Batches(
        len(train),  # type: ignore[arg-type]
        size,
        seed=recipe.seed,
        rank=rank,
        world=world,
        parts=parts,
        weights=sampling,
    )
    train_loader = DataLoader(train, batch_sampler=batches, collate_fn=objective.collate)
    val_batches = Batches(len(val), size, seed=None, rank=rank, world=world, parts=parts)  # type: ignore[arg-type]
    val_loader = DataLoader(val, batch_sampler=val_batches, collate_fn=objective.collate)
    schedule = Schedule(optimizer, recipe, batches.steps)

    at = _Progress()
    best = _copy_of(bare)
    if folder is not None and resume and (found := checkpoint.load(folder)) is not None:
        at, best = _restore(found, folder, bare, optimizer, schedule, recipe)
        if rank:  # the checkpoint has the generator state of the main process only; reseed the others
            torch.manual_seed(recipe.seed + rank + 1000 * at.epoch)

    with progress(description, recipe.epochs) as bar:
        bar.update(bar.task_ids[0], completed=at.epoch)
        while trainable and at.epoch < recipe.epochs and (scheduled or not at.stopped(recipe)):
            batches.epoch = at.epoch
            row: dict[str, float] = {"epoch": at.epoch, "lr": optimizer.param_groups[-1]["lr"]}
            grouped = _Grouped(train_loader, batches)
            row |= _train_epoch(model, objective, grouped, optimizer, schedule, accelerator, at.epoch, recipe)
            _check_finite(row, bare)
            row |= {
                f"val_{name}": value for name, value in _validate(model, objective, val_loader, accelerator).items()
            }
            _check_finite(row, bare)
            monitored = _monitored(row, recipe)
            settled = all(condenser.settled for condenser in scheduled)
            if settled:
                schedule.after_epoch(monitored)
            at.history.append(row)
            key = (monitored if recipe.monitor == "loss" else -monitored, row["val_task"])
            if settled and key < at.best:
                at.best, at.best_epoch = key, at.epoch
                best = _copy_of(bare)
            at.epoch += 1
            if folder is not None and accelerator.is_main_process and at.epoch % recipe.checkpoint_every == 0:
                _checkpoint(folder, at, best, bare, optimizer, schedule, recipe)
            bar.update(
                bar.task_ids[0], completed=at.epoch, description=f"{description}, val loss {row['val_task']:.3f}"
            )
    # If the condenser never settled there is no best epoch: use the last weights.
    bare.load_state_dict(best if at.best_epoch >= 0 or not at.history else _copy_of(bare))
    return bare.cpu().eval(), at.history


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _train_epoch(
    model: nn.Module,
    objective: Objective[S, B],
    batches: _Grouped,
    optimizer: Any,
    schedule: Schedule,
    accelerator: Accelerator,
    epoch: int,
    recipe: Recipe,
) -> dict[str, float]:
    model.train()
    sums: dict[str, float] = {}
    count = 0
    # Frozen condensers stay in eval mode and get no schedule updates.
    condensers = [module for module in model.modules() if isinstance(module, Condenser) and module.training]
    for number, parts in enumerate(batches):
        for condenser in condensers:
            condenser.set_progress((epoch + number / len(batches)) / recipe.epochs)
        # Gradients are averaged over processes, but losses are sums: scale by processes / global count.
        share = accelerator.num_processes / _total(sum(part.count for part in parts), accelerator)
        for place, part in enumerate(parts, start=1):
            with nullcontext() if place == len(parts) else accelerator.no_sync(model):
                with accelerator.autocast():
                    step = _step(model, objective, part.to(accelerator.device), epoch)
                accelerator.backward(step.loss_sum * share)
            _accumulate(sums, step, part.count)
            count += part.count
        if recipe.clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.after_step()
    return _reduced(sums, count, accelerator)


class _Grouped:
    """Iterate over batches; each is the list of its parts."""

    def __init__(self, loader: DataLoader[Any], batches: Batches) -> None:
        self.loader, self.batches = loader, batches

    def __len__(self) -> int:
        return self.batches.steps

    def __iter__(self) -> Iterator[list[Any]]:
        parts = iter(self.loader)
        while group := list(islice(parts, self.batches.parts)):
            yield group


@torch.no_grad()
def _validate(
    model: nn.Module, objective: Objective[S, B], loader: DataLoader[Any], accelerator: Accelerator
) -> dict[str, float]:
    model.eval()
    sums: dict[str, float] = {}
    count = 0
    outputs: dict[str, list[Tensor]] = {}
    for batch in loader:
        step = objective(model, batch.to(accelerator.device))
        _accumulate(sums, step, batch.count)
        count += batch.count
        for name, value in step.outputs.items():
            outputs.setdefault(name, []).append(value.detach().cpu())
    if accelerator.num_processes > 1:
        outputs = {name: gather_object(values) for name, values in outputs.items()}
    gathered = {name: torch.cat(values) for name, values in outputs.items()}
    measured = {name: value for name, value in objective.metrics(gathered).items() if math.isfinite(value)}
    return {**_reduced(sums, count, accelerator), **measured}


def _monitored(row: Mapping[str, float], recipe: Recipe) -> float:
    name = "val_task" if recipe.monitor == "loss" else f"val_{recipe.monitor}"
    if name not in row:
        known = ", ".join(sorted(key.removeprefix("val_") for key in row if key.startswith("val_")))
        raise ConfigError(
            f"--recipe.monitor {recipe.monitor} is not computed, or not defined on the validation slides (a class may "
            f"have no slides there); available: {known}. Use another split, or --recipe.monitor loss"
        )
    return row[name]


def _check_finite(row: Mapping[str, float], model: nn.Module) -> None:
    """Raise DivergedError for a loss or weights that are not finite, before a checkpoint is written."""
    epoch, remedy = int(row["epoch"]), "try a lower learning rate (--recipe.lr), or --recipe.clip 1"
    for name, what in (("loss", "training loss"), ("val_loss", "validation loss"), ("val_task", "validation loss")):
        if not math.isfinite(row.get(name, 0.0)):
            raise DivergedError(f"the {what} became {row[name]} in epoch {epoch}; {remedy}")
    if (broken := _not_finite(model)) is not None:
        raise DivergedError(f"the weights {broken} are no longer finite after epoch {epoch}; {remedy}")


def _not_finite(model: nn.Module) -> str | None:
    """Name of the first tensor of the model that contains NaN or an infinity; None if all are finite."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


def _step(model: nn.Module, objective: Objective[S, B], batch: Any, epoch: int) -> Step:
    """Call the objective. Raises DivergedError if it fails because weights are not finite."""
    try:
        return objective(model, batch)
    except InputError as error:
        if (name := _not_finite(model)) is None:
            raise
        raise DivergedError(
            f"the weights {name} are no longer finite in epoch {epoch}; try a lower learning rate (--recipe.lr), or "
            "--recipe.clip 1"
        ) from error


def _accumulate(sums: dict[str, float], step: Step, count: int) -> None:
    for name, total in (("loss", step.loss_sum), ("task", step.task_sum)):
        sums[name] = sums.get(name, 0.0) + float(total.detach())
    for name, value in step.metrics.items():
        sums[name] = sums.get(name, 0.0) + float(value) * count


def _reduced(sums: dict[str, float], count: int, accelerator: Accelerator) -> dict[str, float]:
    total = _total(count, accelerator)
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
    schedule: Schedule,
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
        "best": [None if math.isinf(value) else value for value in at.best],
        "best_epoch": at.best_epoch,
        "history": at.history,
        "schedule": schedule.state_dict(),
        "optimizer": groups,
        "recipe": vars(recipe),
    }
    checkpoint.save(folder, tensors, values)


def _restore(
    found: tuple[dict[str, Tensor], dict[str, Any]],
    folder: Path,
    model: nn.Module,
    optimizer: Any,
    schedule: Schedule,
    recipe: Recipe,
) -> tuple[_Progress, dict[str, Tensor]]:
    tensors, values = found
    checkpoint.check_recipe(folder, values["recipe"], recipe)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("model/"))
    checkpoint.restore_optimizer(optimizer.optimizer, tensors, values["optimizer"])
    schedule.load_state_dict(values["schedule"])
    torch.set_rng_state(tensors["random/cpu"])
    for device in range(torch.cuda.device_count()):
        if f"random/cuda{device}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random/cuda{device}"], device)
    monitored, loss = (math.inf if value is None else value for value in values["best"])
    return _Progress(values["epoch"], (monitored, loss), values["best_epoch"], values["history"]), part("best/")
