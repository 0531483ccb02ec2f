"""The contract of a condenser. `tests/contract` checks it for every method in this folder.

A new method is one file: a subclass of Condenser with a keyword-only constructor (its signature is the schema), the
class attributes below, and `condense`. See docs/methods/adding.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from abbe.errors import BagError, ConfigError, InputError, MissingCoordinates, check_range
from abbe.layers.masked import on_valid
from abbe.types import Assignment, Condensed, TokenBatch, offsets_of

Budget = int | float | Sequence[int | float] | Tensor


class SlideStream(Protocol):
    """One slide taken in chunks. `abbe.condensers.streaming` has base classes for it."""

    def update(self, features: Tensor, positions: Tensor | None = None) -> Assignment:
        """Add the next patches, [n, D] and [n, 2], in slide order. Returns the assignment of these n patches."""

    def finish(self) -> Condensed:
        """The slide's tokens. The assignment has no rows."""


class Condenser(nn.Module):
    """TokenBatch → Condensed, with at most `tokens` tokens per slide.

    dim: width D of the features.
    tokens: the budget: an int is a count, a float in (0, 1] a keep rate of the slide's patches.
    """

    references: ClassVar[tuple[str, ...]] = ()  # publications, cited in the docs and on model cards
    small: ClassVar[dict[str, Any]] = {}  # tiny options, for tests
    grid: ClassVar[dict[str, list[Any]]] = {}  # {option: values} that a benchmark sweeps
    merges: ClassVar[bool] = False  # a token stands for many patches
    selects: ClassVar[bool] = False  # a token is one patch; tokens are in slide order
    keeps_everything: ClassVar[bool] = False  # every patch is a token, whatever the budget
    changes_features: ClassVar[bool] = False  # a kept token differs from its patch's row: normalised, scaled or encoded
    cuts_mass: ClassVar[bool] = False  # Σ mass may be less than the number of patches that were not dropped
    trainable: ClassVar[bool] = False  # has parameters, and each gets a gradient on every step
    streams: ClassVar[bool] = False  # `stream` works, in memory that does not grow with the slide
    order_dependent: ClassVar[bool] = False  # which patches are kept depends on the order of the rows
    fixed_budget: ClassVar[bool] = False  # the token count is fixed by trained weights and cannot change per call
    needs_positions: ClassVar[bool] = False  # a slide without coordinates is refused
    summarises: ClassVar[bool] = False  # `Condensed.summary` is given
    expected_failures: ClassVar[dict[str, str]] = {}  # {contract check: reason}, at most one

    config: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Condenser:
        # Record the constructor's arguments once, here, so that no subclass has to list them again for saving.
        condenser = super().__new__(cls)
        if not args and not options:  # called by copy or pickle, which restore `config` with the state
            return condenser
        bound = inspect.signature(cls.__init__).bind(condenser, *args, **options)
        bound.apply_defaults()
        given = {key: value for key, value in bound.arguments.items() if key != "self"}
        object.__setattr__(condenser, "config", given)
        return condenser

    def __init__(self, *, dim: int, tokens: int | float = 32) -> None:
        super().__init__()
        check_range(self.name, 1, dim=dim)
        self.dim = dim
        self.tokens: int | float = _budget(self.name, tokens)

    @property
    def name(self) -> str:
        """The registered name, which is the file's name."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def width(self) -> int:
        """Width of the tokens, of the summary and of the predictions."""
        return self.dim

    @property
    def prediction_names(self) -> tuple[str, ...]:
        """Keys of `Condensed.predictions`: auxiliary outputs [B, width], each supervised by a head of the model."""
        return ()

    def forward(
        self,
        batch: TokenBatch,
        *,
        tokens: Budget | None = None,
        soft: bool | None = None,
        predictions: bool = False,
    ) -> Condensed:
        """Condense every slide of the batch.

        tokens: a budget for this call, one for all slides or one per slide; `self.tokens` if None.
        soft: take the training path; `self.training` if None. The budget is an upper bound for soft=False.
        predictions: also compute the auxiliary outputs in `prediction_names`, which only training needs.

        Raises BagError for a wrong width, a value that is not finite or an empty slide, MissingCoordinates, and
        InputError for a budget that the method cannot use.
        """
        self.check(batch)
        soft = self.training if soft is None else soft
        return self._on_valid(batch, lambda valid: self._condense(valid, tokens, soft=soft, predictions=predictions))

    def set_progress(self, fraction: float) -> None:
        """Called before every training step with the share of planned steps that is done, in [0, 1).

        Override it where a temperature or budget changes over training; keep that state in buffers, so that
        checkpoints hold it.
        """

    @property
    def has_schedule(self) -> bool:
        """Whether `set_progress` is overridden; such a method is trained to the end of its schedule."""
        return type(self).set_progress is not Condenser.set_progress

    @property
    def settled(self) -> bool:
        """Whether the schedule is far enough advanced for weights to count as the best."""
        return True

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        """What a method implements. `budgets` has one count ≥ 1 per slide; the batch has been checked.

        A method with `prediction_names` also takes `predictions: bool = False`, whether to compute them.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement condense")

    def stream(self, slide_id: str) -> SlideStream:
        """Take one slide in chunks; gives the tokens of a call in eval mode. InputError if the method cannot."""
        raise InputError(f"{self.name} does not stream: it needs all patches of a slide in one TokenBatch")

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        """The number of tokens a call returns for each of these slide lengths, without running it."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        return [min(k, n) for k, n in zip(self.budgets(lengths, tokens), lengths.tolist(), strict=True)]

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """One count per slide. A count may exceed the slide's length."""
        return [
            budget if isinstance(budget, int) else max(1, int(budget * n + 1e-9))
            for budget, n in zip(self.requested(lengths, tokens), lengths.tolist(), strict=True)
        ]

    def requested(self, lengths: Tensor, tokens: Budget | None) -> list[int | float]:
        """The budget of each slide as given, a count or a keep rate, checked."""
        wanted = self.tokens if tokens is None else tokens
        each: Any = wanted
        if isinstance(wanted, Tensor):
            each = (wanted.float() if wanted.dtype == torch.bfloat16 else wanted).numpy(force=True)[()]
        listed = isinstance(each, Sequence | np.ndarray) and not isinstance(each, str) and np.ndim(each) > 0
        given = list(each) if listed else [each] * len(lengths)
        if len(given) != len(lengths):
            raise InputError(f"{self.name}: {len(given)} budgets for {len(lengths)} slides; give one, or one per slide")
        return [_budget(self.name, budget) for budget in given]

    def _condense(self, batch: TokenBatch, tokens: Budget | None, *, soft: bool, predictions: bool) -> Condensed:
        """`condense` with the budget as given. Only methods with `prediction_names` are told about predictions."""
        more = {"predictions": predictions} if self.prediction_names else {}
        return self.condense(batch, self.budgets(batch.lengths, tokens), soft=soft, **more)

    def _on_valid(self, batch: TokenBatch, run: Callable[[TokenBatch], Condensed]) -> Condensed:
        """`run(batch)`, for a method that selects without the masked tokens."""
        return on_valid(batch, run) if self.selects and not self.keeps_everything else run(batch)

    def check(self, batch: TokenBatch) -> None:
        """Raise if the batch cannot be condensed; see `forward`."""
        if batch.width != self.dim:
            raise BagError(f"{self.name}: features are {batch.width} wide, but the condenser has dim={self.dim}")
        for slide_id, n in zip(batch.slide_ids, batch.lengths.tolist(), strict=True):
            if n == 0:
                raise BagError(f"{self.name}: slide {slide_id!r} has no patches; leave empty slides out")
        if self.needs_positions and batch.positions is None:
            slides = ", ".join(map(repr, batch.slide_ids[:3])) + (", …" if len(batch) > 3 else "")
            which = "slide" if len(batch) == 1 else "at least one of the slides"
            raise MissingCoordinates(
                f"{self.name} needs positions, and {which} {slides} has no coordinates; use features with coordinates "
                "or another method"
            )
        weight = next(self.parameters(), None)
        if weight is not None and weight.device != batch.features.device:
            raise InputError(
                f"{self.name} is on {weight.device}, but the batch is on {batch.features.device}; move one of them"
            )
        if batch.features.device.type != "cpu":  # reading values would wait for the device on every call
            return
        for what, values in (("features", batch.features), ("positions", batch.positions)):
            # One reduction instead of a mask over all values: the sum is not finite if any value is not.
            if values is None or bool(torch.isfinite(values.detach().sum(dtype=torch.float32))):
                continue
            finite = torch.isfinite(values).all(1)
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0])
                slide = batch.slide_ids[int(batch.slide_index[row])]
                raise BagError(f"{self.name}: slide {slide!r}, patch {int(batch.origin[row])}: {what} are not finite")


def select(batch: TokenBatch, kept: Sequence[Tensor]) -> Condensed:
    """The result of a method that selects. kept: for each slide the rows it keeps, within the slide, sorted."""
    starts = batch.offsets[:-1].tolist()
    device = batch.features.device
    rows = torch.cat([keep.to(device) + start for keep, start in zip(kept, starts, strict=True)])
    lengths = torch.tensor([len(keep) for keep in kept])
    within = torch.cat([torch.arange(int(n)) for n in lengths]).to(device=device, dtype=torch.int32)
    index = torch.full((len(batch.features), 1), -1, dtype=torch.int32, device=device)
    index[rows, 0] = within
    assignment = Assignment(index, (index >= 0).to(batch.features.dtype), batch.offsets)
    return Condensed(batch.rows(rows, offsets_of(lengths)), assignment, dropped=batch.lengths - lengths)


def merge_groups(batch: TokenBatch, groups: Tensor, counts: Sequence[int], *, placed: bool = False) -> Condensed:
    """The result of a method that merges: the mean of each group of a slide's tokens.

    groups: [T] int64, the group of each token within its slide, below counts[b]; −1 drops the token.
    counts: groups of each slide.
    placed: give a token the mean position of its group; without it, tokens have no positions.

    Means are weighted by mass · weight and taken in float32. Masked tokens are left out, whatever their group. A group
    without tokens becomes a masked token of zeros.
    """
    b, device = len(batch), batch.features.device
    offsets = offsets_of(list(counts))
    amount = (batch.mass * batch.weight).float()
    inside = (groups >= 0) & batch.mask
    target = (offsets[:-1].to(device)[batch.slide_index] + groups)[inside]
    amount, total = amount[inside], amount.new_zeros(int(offsets[-1]))
    total = total.index_add(0, target, amount)
    share = (amount / total.clamp_min(1e-9)[target])[:, None]

    def mean(rows: Tensor) -> Tensor:
        return rows.new_zeros(len(total), rows.shape[1]).index_add(0, target, rows * share.to(rows.dtype))

    positions = None
    if placed and batch.positions is not None:
        positions = mean(batch.positions[inside].float())
    tokens = TokenBatch(
        features=mean(batch.features[inside].float()).to(batch.features.dtype),
        positions=positions,
        mass=total,
        mask=total > 0,
        weight=torch.ones_like(total),
        origin=torch.cat([torch.arange(n) for n in counts]).to(device),
        offsets=offsets,
        lengths0=batch.lengths0,
        slide_ids=batch.slide_ids,
    )
    index = torch.where(inside, groups, -1).to(torch.int32)[:, None]
    assignment = Assignment(index, (index >= 0).to(batch.features.dtype), batch.offsets)
    lost = torch.zeros(b, dtype=torch.int64).index_add(
        0, batch.slide_index.cpu(), ((groups < 0) & batch.mask).long().cpu()
    )
    return Condensed(tokens, assignment, dropped=lost)


def _budget(name: str, given: object) -> int | float:
    """A count or a keep rate as Python's number, checked."""
    # Read a float32 keep rate as the decimal it was written as: 0.699999988 would keep 6 of 10 patches, 0.7 keeps 7.
    budget = float(str(given)) if isinstance(given, np.float32 | np.float16) else given
    budget = budget.item() if isinstance(budget, np.generic) else budget
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ConfigError(f"{name}: tokens must be an int (a count) or a float in (0, 1] (a keep rate), got {given!r}")
    if isinstance(budget, int) and budget < 1:
        raise ConfigError(f"{name}: tokens must be at least 1, got {budget}")
    if isinstance(budget, float) and not 0 < budget <= 1:
        raise ConfigError(f"{name}: a keep rate must be in (0, 1], got {budget}; a count must be an int")
    return budget
