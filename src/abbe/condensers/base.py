"""The contract every condenser keeps. `tests/contract` checks it for every file of this folder.

A new method is one file: a subclass of Condenser with a keyword-only constructor (its signature is the schema), the
class attributes below, and `condense`. It then appears in the command line, the tests, the benchmarks and the docs.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from abbe.errors import BagError, ConfigError, InputError, MissingCoordinates
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
    streams: ClassVar[bool] = False
    needs_positions: ClassVar[bool] = False
    expected_failures: ClassVar[dict[str, str]] = {}  # {contract check: reason}, at most one

    config: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Condenser:
        # The constructor's arguments are the condenser's configuration: recorded here once, so that no subclass has to
        # keep a second list of them for saving and loading.
        condenser = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind(condenser, *args, **options)
        bound.apply_defaults()
        given = {key: value for key, value in bound.arguments.items() if key != "self"}
        object.__setattr__(condenser, "config", given)
        return condenser

    def __init__(self, *, dim: int, tokens: int | float = 32) -> None:
        super().__init__()
        if dim < 1:
            raise ConfigError(f"{self.name}: dim must be at least 1, got {dim}")
        self.dim = dim
        self.tokens = tokens
        _check_budget(self.name, tokens)

    @property
    def name(self) -> str:
        """The registered name: the file's."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.dim

    def forward(self, batch: TokenBatch, *, tokens: Budget | None = None, soft: bool | None = None) -> Condensed:
        """Condense every slide of the batch.

        tokens: another budget for this call, one for all or one a slide, where the method allows it.
        soft: the training path; `self.training` unless set. K ≤ budget holds for soft=False.

        Raises BagError for a wrong width, NaN or an empty slide, MissingCoordinates, InputError for the budget.
        """
        self._check(batch)
        soft = self.training if soft is None else soft
        return self.condense(batch, self.budgets(batch.lengths, tokens), soft=soft)

    def condense(self, batch: TokenBatch, budgets: list[int], *, soft: bool) -> Condensed:
        """What a method implements. `budgets` has one count ≥ 1 a slide; the batch has been checked."""
        raise NotImplementedError(f"{type(self).__name__} must implement condense")

    def count(self, lengths: Sequence[int] | Tensor, *, tokens: Budget | None = None, soft: bool = False) -> list[int]:
        """Numbers of tokens a call will return for slides of these lengths, without running it."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        return [min(k, n) for k, n in zip(self.budgets(lengths, tokens), lengths.tolist(), strict=True)]

    def budgets(self, lengths: Tensor, tokens: Budget | None) -> list[int]:
        """One count a slide from a count, a keep rate, or a list of them. Counts may exceed a slide's length."""
        wanted = self.tokens if tokens is None else tokens
        each: Any = wanted.tolist() if isinstance(wanted, Tensor) else wanted
        listed = isinstance(each, Sequence) and not isinstance(each, str)
        given: list[int | float] = list(each) if listed else [each] * len(lengths)
        if len(given) != len(lengths):
            raise InputError(f"{self.name}: {len(given)} budgets for {len(lengths)} slides; give one, or one a slide")
        for budget in given:
            _check_budget(self.name, budget)
        return [
            budget if isinstance(budget, int) else max(1, int(budget * n + 1e-9))
            for budget, n in zip(given, lengths.tolist(), strict=True)
        ]

    def _check(self, batch: TokenBatch) -> None:
        if batch.width != self.dim:
            raise BagError(f"{self.name}: features are {batch.width} wide, the condenser was made for dim={self.dim}")
        for slide_id, n in zip(batch.slide_ids, batch.lengths.tolist(), strict=True):
            if n == 0:
                raise BagError(f"{self.name}: slide {slide_id!r} has no patches; leave empty slides out of the batch")
        if self.needs_positions and batch.positions is None:
            raise MissingCoordinates(f"{self.name} needs positions, and a bag of this batch has no coordinates")
        weight = next(self.parameters(), None)
        if weight is not None and weight.device != batch.features.device:
            raise InputError(
                f"{self.name} is on {weight.device}, the batch on {batch.features.device}; move one of them"
            )
        # One reduction instead of a mask over all values: the sum of squares is NaN or infinite if any value is.
        if batch.features.device.type == "cpu" and not bool(torch.isfinite(batch.features.detach().float().sum())):
            finite = torch.isfinite(batch.features).all(1)
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0])
                slide = batch.slide_ids[int(batch.slide_index[row])]
                raise BagError(f"{self.name}: slide {slide!r}, patch {int(batch.origin[row])}: features are not finite")


def select(batch: TokenBatch, kept: Sequence[Tensor]) -> Condensed:
    """The tokens `kept` of each slide (sorted rows within the slide), as a Condensed. For methods that select."""
    starts = batch.offsets[:-1].tolist()
    device = batch.features.device
    rows = torch.cat([keep.to(device) + start for keep, start in zip(kept, starts, strict=True)])
    lengths = torch.tensor([len(keep) for keep in kept])
    new_offsets = offsets_of(lengths)
    within = torch.cat([torch.arange(int(n)) for n in lengths]).to(device=device, dtype=torch.int32)
    index = torch.full((len(batch.features), 1), -1, dtype=torch.int32, device=device)
    index[rows, 0] = within
    tokens = TokenBatch(
        features=batch.features[rows],
        positions=None if batch.positions is None else batch.positions[rows],
        mass=batch.mass[rows],
        mask=batch.mask[rows],
        weight=batch.weight[rows],
        origin=batch.origin[rows],
        offsets=new_offsets,
        lengths0=batch.lengths0,
        slide_ids=batch.slide_ids,
    )
    assignment = Assignment(index, (index >= 0).to(batch.features.dtype), batch.offsets)
    return Condensed(tokens, assignment, dropped=batch.lengths - lengths)


def _check_budget(name: str, budget: object) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ConfigError(f"{name}: tokens must be an int (a count) or a float in (0, 1] (a keep rate), got {budget!r}")
    if isinstance(budget, int) and budget < 1:
        raise ConfigError(f"{name}: tokens must be at least 1, got {budget}")
    if isinstance(budget, float) and not 0 < budget <= 1:
        raise ConfigError(f"{name}: a keep rate must lie in (0, 1], got {budget}; a count is an int")
