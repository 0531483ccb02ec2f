"""The contract every condenser keeps. `tests/contract` checks it for every file of this folder.

A new method is one file: a subclass of Condenser with a keyword-only constructor (its signature is the schema), the
class attributes below, and `condense`. It then appears in the command line, the tests, the benchmarks and the docs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from abbe.errors import BagError, ConfigError, InputError, MissingCoordinates, check_range
from abbe.layers.masked import on_valid
from abbe.types import Assignment, Condensed, TokenBatch, offsets_of

Budget = int | float | Sequence[int | float] | Tensor


class Condenser(nn.Module):
    """TokenBatch → Condensed, with at most `tokens` tokens a slide.

    dim: width D of the features; `width` is that of the tokens, the same unless a subclass says otherwise.
    tokens: the budget: an int is a count, a float in (0, 1] a keep rate of the slide's patches.
    """

    references: ClassVar[tuple[str, ...]] = ()
    small: ClassVar[dict[str, Any]] = {}  # tiny keyword arguments, for tests
    grid: ClassVar[dict[str, list[Any]]] = {}  # what a benchmark sweeps
    merges: ClassVar[bool] = False  # a token stands for many patches
    selects: ClassVar[bool] = False  # a token is one patch, kept in slide order
    cuts_mass: ClassVar[bool] = False  # Σ mass may fall short of the patches that were not dropped
    trainable: ClassVar[bool] = False
    streams: ClassVar[bool] = False  # `stream` takes a slide a chunk at a time, in memory that does not grow with it
    order_dependent: ClassVar[bool] = (
        False  # which patches are kept depends on the order of the rows, not on the patches
    )
    changes_features: ClassVar[bool] = (
        False  # a kept token is not its patch's row as it was: normalised, or mixed with others
    )
    fixed_budget: ClassVar[bool] = False  # the number of tokens is a matter of weights; no call can ask for another
    needs_positions: ClassVar[bool] = False
    summarises: ClassVar[bool] = False  # `Condensed.summary` is given
    expected_failures: ClassVar[dict[str, str]] = {}  # {contract check: reason}, at most one

    config: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Condenser:
        # The constructor's arguments are the condenser's configuration: recorded here once, so that no subclass has to
        # keep a second list of them for saving and loading.
        condenser = super().__new__(cls)
        if not args and not options:  # a copy is being made: its configuration comes with its state
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
        """The registered name: the file's."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def width(self) -> int:
        """Width of the tokens, of the summary and of the predictions."""
        return self.dim

    @property
    def prediction_names(self) -> tuple[str, ...]:
        """Keys of `Condensed.predictions`: auxiliary outputs [B, width] that a model gives a head each."""
        return ()

    def forward(self, batch: TokenBatch, *, tokens: Budget | None = None, soft: bool | None = None) -> Condensed:
        """Condense every slide of the batch.

        tokens: another budget for this call, one for all or one a slide, where the method allows it.
        soft: the training path; `self.training` unless set. K ≤ budget holds for soft=False.

        Raises BagError for a wrong width, NaN or an empty slide, MissingCoordinates, InputError for the budget.
        """
        self._check(batch)
        soft = self.training if soft is None else soft
        return self._on_valid(batch, lambda valid: self.condense(valid, self.budgets(valid.lengths, tokens), soft=soft))

    def set_progress(self, fraction: float) -> None:
        """Told before every training step: the share of all planned steps that is done, in [0, 1).

        For a method whose temperature or budget changes as training goes on; it keeps them in buffers, so that
        checkpoints do. Most have nothing to change.
        """

    @property
    def has_schedule(self) -> bool:
        """Whether `set_progress` changes the method over training; it is then trained to the end of its schedule."""
        return type(self).set_progress is not Condenser.set_progress

    @property
    def settled(self) -> bool:
        """Whether the schedule has come so far that the weights may be kept as the best."""
        return True

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        """What a method implements. `budgets` has one count ≥ 1 a slide; the batch has been checked."""
        raise NotImplementedError(f"{type(self).__name__} must implement condense")

    def stream(self, slide_id: str) -> Stream:
        """A slide taken a chunk at a time: the tokens of a call in eval. InputError where the method cannot."""
        raise InputError(
            f"{self.name} does not stream: it must see a slide whole; pack its patches into one TokenBatch and call it"
        )

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        """Numbers of tokens a call will return for slides of these lengths, without running it."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        return [min(k, n) for k, n in zip(self.budgets(lengths, tokens), lengths.tolist(), strict=True)]

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """One count a slide from a count, a keep rate, or a list of them. Counts may exceed a slide's length."""
        return [
            budget if isinstance(budget, int) else max(1, int(budget * n + 1e-9))
            for budget, n in zip(self.asked(lengths, tokens), lengths.tolist(), strict=True)
        ]

    def asked(self, lengths: Tensor, tokens: Budget | None) -> list[int | float]:
        """What was asked of each slide, a count or a keep rate, checked."""
        wanted = self.tokens if tokens is None else tokens
        each: Any = wanted
        if isinstance(wanted, Tensor):
            each = (wanted.float() if wanted.dtype == torch.bfloat16 else wanted).numpy(force=True)[()]
        listed = isinstance(each, Sequence | np.ndarray) and not isinstance(each, str) and np.ndim(each) > 0
        given = list(each) if listed else [each] * len(lengths)
        if len(given) != len(lengths):
            raise InputError(f"{self.name}: {len(given)} budgets for {len(lengths)} slides; give one, or one a slide")
        return [_budget(self.name, budget) for budget in given]

    def _on_valid(self, batch: TokenBatch, run: Callable[[TokenBatch], Condensed]) -> Condensed:
        """`run(batch)`; a method that selects is not shown masked tokens."""
        return on_valid(batch, run) if self.selects else run(batch)

    def _check(self, batch: TokenBatch) -> None:
        if batch.width != self.dim:
            raise BagError(f"{self.name}: features are {batch.width} wide, the condenser was made for dim={self.dim}")
        for slide_id, n in zip(batch.slide_ids, batch.lengths.tolist(), strict=True):
            if n == 0:
                raise BagError(f"{self.name}: slide {slide_id!r} has no patches; leave empty slides out of the batch")
        if self.needs_positions and batch.positions is None:
            slides = ", ".join(map(repr, batch.slide_ids[:3])) + (", …" if len(batch) > 3 else "")
            which = "slide" if len(batch) == 1 else "one of the slides"
            raise MissingCoordinates(
                f"{self.name} needs positions, and {which} {slides} has no coordinates; use a method that needs none, "
                "or features with coordinates"
            )
        weight = next(self.parameters(), None)
        if weight is not None and weight.device != batch.features.device:
            raise InputError(
                f"{self.name} is on {weight.device}, the batch on {batch.features.device}; move one of them"
            )
        if batch.features.device.type != "cpu":  # on a device this would force a wait at every call
            return
        for what, values in (("features", batch.features), ("positions", batch.positions)):
            # One reduction instead of a mask over all values: the sum is NaN or infinite if any value is.
            if values is None or bool(torch.isfinite(values.detach().sum(dtype=torch.float32))):
                continue
            finite = torch.isfinite(values).all(1)
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0])
                slide = batch.slide_ids[int(batch.slide_index[row])]
                raise BagError(f"{self.name}: slide {slide!r}, patch {int(batch.origin[row])}: {what} are not finite")


def select(batch: TokenBatch, kept: Sequence[Tensor]) -> Condensed:
    """The tokens `kept` of each slide (sorted rows within the slide), as a Condensed. For methods that select."""
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
    """Means of a slide's tokens over groups, as a Condensed. For methods that merge by a hard assignment.

    groups: [T] int64, the group of each token within its slide, below counts[b]; −1 for one that went nowhere.
    placed: a token's position is the mean of its group's, where there are positions; otherwise it has none.

    Means are weighted by mass · weight and taken in float32; a masked token is left out whatever group it was given;
    a group without tokens is a masked, zero token.
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


class Stream:
    """One slide, a chunk at a time, without gradients. A method implements `take` and `close`.

    update(features [n, D], positions [n, 2] | None) → Assignment of the chunk's n patches.
    finish() → Condensed whose assignment has no rows, since keeping them would grow with the slide.
    """

    def __init__(self, condenser: Condenser, slide_id: str) -> None:
        self.condenser, self.slide_id = condenser, slide_id
        self.seen = 0
        self._placed: bool | None = None
        self._dtype: torch.dtype | None = None

    @torch.no_grad()
    def update(self, features: Tensor, positions: Tensor | None = None) -> Assignment:
        """Take the next patches, in slide order. Raises as a call does, and BagError if positions come and go."""
        n, device = len(features), features.device
        if self._placed not in (None, positions is not None):
            raise BagError(
                f"{self.condenser.name}: slide {self.slide_id!r}: positions must come with every chunk or none"
            )
        self._placed = positions is not None
        if self._dtype not in (None, features.dtype):
            raise BagError(
                f"{self.condenser.name}: slide {self.slide_id!r}: features came in {self._dtype}, now in "
                f"{features.dtype}; a slide has one type"
            )
        self._dtype = features.dtype
        if n == 0:
            raise BagError(
                f"{self.condenser.name}: slide {self.slide_id!r}: a chunk without patches; leave empty ones out"
            )
        chunk = TokenBatch(
            features=features,
            positions=positions,
            mass=torch.ones(n, device=device),
            mask=torch.ones(n, dtype=torch.bool, device=device),
            weight=torch.ones(n, device=device),
            origin=torch.arange(self.seen, self.seen + n, device=device),
            offsets=torch.tensor([0, n]),
            lengths0=torch.tensor([n]),
            slide_ids=(self.slide_id,),
        )
        self.condenser._check(chunk)
        self.seen += n
        return self.take(chunk)

    @torch.no_grad()
    def finish(self) -> Condensed:
        """The slide's tokens. Raises BagError where no patch came."""
        if self.seen == 0:
            raise BagError(f"{self.condenser.name}: slide {self.slide_id!r} has no patches; nothing was streamed")
        return self.close()

    def take(self, chunk: TokenBatch) -> Assignment:
        """Add a chunk that has been checked."""
        raise NotImplementedError(f"{type(self).__name__} must implement take")

    def close(self) -> Condensed:
        """The tokens of all that was taken."""
        raise NotImplementedError(f"{type(self).__name__} must implement close")


class SelectStream(Stream):
    """The K best patches so far. `score` gives [n], the larger the better; the first of equals is kept.

    A chunk's assignment names the place of its patches among those held now, −1 for those already lost; which are kept
    in the end is `finish().tokens.origin`.
    """

    def __init__(self, condenser: Condenser, slide_id: str, score: Callable[[TokenBatch], Tensor]) -> None:
        super().__init__(condenser, slide_id)
        if not isinstance(condenser.tokens, int):
            raise InputError(
                f"{condenser.name}: a stream does not know how many patches will come, so it needs a count, not the "
                f"keep rate {condenser.tokens}"
            )
        self.budget, self.score = condenser.tokens, score
        self.held: list[Tensor | None] = []  # scores, rows, features, positions

    def take(self, chunk: TokenBatch) -> Assignment:
        new = [self.score(chunk), chunk.origin, chunk.features, chunk.positions]
        if self.held:
            new = [None if b is None or a is None else torch.cat([a, b]) for a, b in zip(self.held, new, strict=True)]
        scores, rows = new[0], new[1]
        assert scores is not None
        assert rows is not None
        best = scores.argsort(descending=True, stable=True)[: self.budget].sort().values
        self.held = [None if value is None else value[best] for value in new]
        index = torch.full((len(rows), 1), -1, dtype=torch.int32, device=rows.device)
        index[best, 0] = torch.arange(len(best), dtype=torch.int32, device=rows.device)
        index = index[len(rows) - len(chunk.features) :]
        return Assignment(index, (index >= 0).to(chunk.features.dtype), chunk.offsets)

    def close(self) -> Condensed:
        _, rows, features, positions = self.held
        assert rows is not None
        assert features is not None
        n, ones = len(rows), torch.ones(len(rows), device=features.device)
        tokens = TokenBatch(
            features=features,
            positions=positions,
            mass=ones,
            mask=ones > 0,
            weight=ones,
            origin=rows,
            offsets=torch.tensor([0, n]),
            lengths0=torch.tensor([self.seen]),
            slide_ids=(self.slide_id,),
        )
        return Condensed(tokens, no_assignment(1, features), dropped=torch.tensor([self.seen - n]))


def no_assignment(routes: int, like: Tensor) -> Assignment:
    """The assignment of a finished stream: one slide, no rows, on the device and in the type of `like`."""
    index = torch.empty(0, routes, dtype=torch.int32, device=like.device)
    return Assignment(index, like.new_empty(0, routes), torch.zeros(2, dtype=torch.int64))


def _budget(name: str, given: object) -> int | float:
    """A count or a keep rate as Python's number, checked."""
    # A float32 keep rate means the decimal it was written as: 0.7, not 0.699999988, of which 10 patches leave 6.
    budget = float(str(given)) if isinstance(given, np.float32 | np.float16) else given
    budget = budget.item() if isinstance(budget, np.generic) else budget
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ConfigError(f"{name}: tokens must be an int (a count) or a float in (0, 1] (a keep rate), got {given!r}")
    if isinstance(budget, int) and budget < 1:
        raise ConfigError(f"{name}: tokens must be at least 1, got {budget}")
    if isinstance(budget, float) and not 0 < budget <= 1:
        raise ConfigError(f"{name}: a keep rate must lie in (0, 1], got {budget}; a count is an int")
    return budget
