"""The four types everything flows through, with their invariants checked at construction.

Shape legend, used in every docstring and in suffixes where they help:
    N  patches of one slide          P  original patches of all slides of a batch
    T  tokens of all slides, packed  B  slides     K  token budget
    D  width                         R  routes a patch can take (1 selecting or merging, 2 TC-SSA)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abbe.errors import BagError, InputError, MissingCoordinates


@dataclass(frozen=True, eq=False)
class Bag:
    """One slide as a bag of patch features.

    features: [N, D] float32 or float16, on the CPU, finite.
    coords: [N, 2] float64, top-left corners (x, y) in level-0 pixels, or None for a bare bag.
    patch_size_level0: side of a patch in level-0 pixels; None exactly when coords is None.
    stride_level0: step between patches in level-0 pixels, where known.
    mpp: microns a pixel at level 0, where known.  level0_size: (width, height) of the slide, where known.
    encoder: name of the patch encoder.  source: the file the bag came from, named in errors.

    Raises BagError for any contradiction: lengths that differ, NaN or infinite values, negative, duplicate or outside
    coordinates. A patch may overhang the right and lower border by less than its own size.
    """

    features: Tensor
    coords: Tensor | None
    patch_size_level0: float | None
    slide_id: str
    _: KW_ONLY
    stride_level0: float | None = None
    mpp: float | None = None
    level0_size: tuple[int, int] | None = None
    encoder: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        features = torch.as_tensor(self.features)
        self._require(features.ndim == 2, f"features must be [N, D], got shape {tuple(features.shape)}")
        self._require(
            features.dtype in (torch.float32, torch.float16),
            f"features must be float32 or float16, got {features.dtype}",
        )
        self._require(features.device.type == "cpu", f"features must lie on the CPU, got {features.device}")
        finite = torch.isfinite(features)
        if not bool(finite.all()):
            row, column = torch.nonzero(~finite)[0].tolist()
            value = float(features[row, column])
            raise self._error(f"features[{row}, {column}] is {value}; every feature must be finite")
        object.__setattr__(self, "features", features)
        self._require(bool(self.slide_id), "slide_id is empty")
        self._require(
            (self.coords is None) == (self.patch_size_level0 is None),
            "coords and patch_size_level0 go together: give both or neither",
        )
        for name in ("patch_size_level0", "stride_level0", "mpp"):
            value = getattr(self, name)
            self._require(
                value is None or (math.isfinite(value) and value > 0), f"{name} must be a positive number, got {value}"
            )
        if self.coords is not None:
            object.__setattr__(self, "coords", self._checked_coords(len(features)))

    def _checked_coords(self, n: int) -> Tensor:
        coords = torch.as_tensor(self.coords).to(torch.float64)
        self._require(coords.shape == (n, 2), f"coords must be [{n}, 2] like the features, got {tuple(coords.shape)}")
        for bad, what in (
            (~torch.isfinite(coords).all(1), "is not finite"),
            ((coords < 0).any(1), "is negative"),
        ):
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                raise self._error(f"coords[{row}] = {coords[row].tolist()} {what}")
        unique, first = np.unique(coords.numpy(), axis=0, return_index=True)
        if len(unique) < n:
            row = int(np.setdiff1d(np.arange(n), first)[0])
            raise self._error(f"coords[{row}] = {coords[row].tolist()} stands more than once")
        if self.level0_size is not None:
            # An overhang of less than a patch is right: tilers pad the last column and row.
            outside = (coords >= torch.tensor(self.level0_size, dtype=torch.float64)).any(1)
            if bool(outside.any()):
                row = int(outside.nonzero()[0])
                raise self._error(
                    f"coords[{row}] = {coords[row].tolist()} lies outside the slide of {self.level0_size} "
                    "level-0 pixels"
                )
        return coords

    def _require(self, ok: bool, message: str) -> None:  # noqa: FBT001
        if not ok:
            raise self._error(message)

    def _error(self, message: str) -> BagError:
        return BagError(f"{self.source or 'bag'} ({self.slide_id or 'no slide_id'}): {message}")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """D, the width of a feature row."""
        return self.features.shape[1]

    @property
    def positions(self) -> Tensor:
        """Patch centres in patch units, [N, 2] float64, continuous: (xy + size / 2) / size.

        Raises MissingCoordinates for a bare bag.
        """
        if self.coords is None or self.patch_size_level0 is None:
            raise MissingCoordinates(
                f"{self.source or 'bag'} ({self.slide_id}): no coordinates. A step that needs positions cannot use it; "
                "read it from a layout that has them, or give --patch-size-level0 or --slide where coords are stored "
                "without a size"
            )
        return (self.coords + self.patch_size_level0 / 2) / self.patch_size_level0


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Tokens of B slides, packed one after another, never padded.

    features: [T, D] floating.             positions: [T, 2] float32 in patch units, or None.
    mass: [T] ≥ 0, patches a token stands for (1 for a patch).
    mask: [T] bool, False for a slot that got no patch; its token is zero and must not be pooled.
    weight: [T] ≥ 0, soft selection, 1 by default.
    origin: [T] int64, row in the slide's bag, or slot number.
    offsets: [B+1] int64, on the CPU: slide b owns rows offsets[b]:offsets[b+1].
    lengths0: [B] int64, on the CPU: patches the slide had at first.    slide_ids: B strings.

    Structure (offsets, lengths0) stays on the CPU so that loops over slides never wait for a device.
    """

    features: Tensor
    positions: Tensor | None
    mass: Tensor
    mask: Tensor
    weight: Tensor
    origin: Tensor
    offsets: Tensor
    lengths0: Tensor
    slide_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        features = self.features
        _require(features.ndim == 2 and features.is_floating_point(), "features must be floating [T, D]", features)
        t = features.shape[0]
        for name, dtype in (("mass", None), ("mask", torch.bool), ("weight", None), ("origin", torch.int64)):
            value: Tensor = getattr(self, name)
            _require(value.shape == (t,), f"{name} must be [T] = [{t}]", value)
            _require(value.device == features.device, f"{name} must be on {features.device}", value)
            right = value.is_floating_point() if dtype is None else value.dtype == dtype
            _require(right, f"{name} must be {dtype or 'floating'}", value)
        if self.positions is not None:
            _require(self.positions.shape == (t, 2), f"positions must be [T, 2] = [{t}, 2]", self.positions)
            _require(
                self.positions.device == features.device, f"positions must be on {features.device}", self.positions
            )
        b = len(self.slide_ids)
        for name, length in (("offsets", b + 1), ("lengths0", b)):
            value = getattr(self, name)
            right = value.shape == (length,) and value.dtype == torch.int64 and value.device.type == "cpu"
            _require(right, f"{name} must be int64 [{length}] on the CPU for {b} slides", value)
        steps = self.offsets.diff()
        _require(
            int(self.offsets[0]) == 0 and int(self.offsets[-1]) == t, f"offsets must run from 0 to {t}", self.offsets
        )
        _require(bool((steps >= 0).all()), "offsets must not fall", self.offsets)
        _require(bool((self.lengths0 >= 0).all()), "lengths0 must not be negative", self.lengths0)
        if features.device.type == "cpu":  # on a device these would force a wait at every construction
            for name in ("mass", "weight"):
                value = getattr(self, name).detach()
                right = bool(((value >= 0) & torch.isfinite(value)).all())
                _require(right, f"{name} must be finite and not negative", value)

    @classmethod
    def pack(cls, bags: Sequence[Bag], *, dtype: torch.dtype = torch.float32) -> TokenBatch:
        """Bags one after another, each patch a token of mass 1. Positions are kept if every bag has them."""
        if not bags:
            raise InputError("pack: no bags given; a batch needs at least one")
        widths = {bag.slide_id: bag.width for bag in bags}
        if len(set(widths.values())) > 1:
            raise BagError(f"pack: bags of different widths cannot share a batch: {widths}")
        lengths = torch.tensor([len(bag) for bag in bags], dtype=torch.int64)
        t = int(lengths.sum())
        placed = all(bag.coords is not None for bag in bags)
        return cls(
            features=torch.cat([bag.features for bag in bags]).to(dtype),
            positions=torch.cat([bag.positions for bag in bags]).float() if placed else None,
            mass=torch.ones(t),
            mask=torch.ones(t, dtype=torch.bool),
            weight=torch.ones(t),
            origin=torch.cat([torch.arange(len(bag)) for bag in bags]),
            offsets=offsets_of(lengths),
            lengths0=lengths,
            slide_ids=tuple(bag.slide_id for bag in bags),
        )

    def __len__(self) -> int:
        """B, the number of slides."""
        return len(self.slide_ids)

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each slide, [B] int64 on the CPU."""
        return self.offsets.diff()

    @property
    def slide_index(self) -> Tensor:
        """Slide of each token, [T] int64, on the features' device."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths).to(self.features.device)

    def unpack(self) -> list[TokenBatch]:
        """The same tokens as B batches of one slide each (views, no copies)."""
        return [self[b] for b in range(len(self))]

    def __getitem__(self, b: int) -> TokenBatch:
        if not -len(self) <= b < len(self):
            raise IndexError(f"slide {b} of a batch of {len(self)}")
        b %= len(self)
        rows = slice(int(self.offsets[b]), int(self.offsets[b + 1]))
        one = torch.tensor([0, rows.stop - rows.start])
        return self.rows(rows, one, lengths0=self.lengths0[b : b + 1], slide_ids=(self.slide_ids[b],))

    def rows(self, rows: Tensor | slice, offsets: Tensor, **of_slides: Any) -> TokenBatch:
        """These tokens only, slide after slide. offsets: [B+1], where each slide begins among them."""
        names = ("features", "mass", "mask", "weight", "origin")
        taken = {name: getattr(self, name)[rows] for name in names}
        return replace(
            self,
            **taken,
            positions=None if self.positions is None else self.positions[rows],
            offsets=offsets,
            **of_slides,
        )

    def __iter__(self) -> Iterator[TokenBatch]:
        return iter(self.unpack())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TokenBatch:
        """The batch on `device`, features in `dtype`; structure stays on the CPU, mass and weight keep their type."""
        moved: dict[str, Any] = {"features": self.features.to(device=device, dtype=dtype)}
        for name in ("positions", "mass", "mask", "weight", "origin"):
            value = getattr(self, name)
            moved[name] = None if value is None else value.to(device=device)
        return replace(self, **moved)

    def padded(self) -> tuple[Tensor, Tensor]:
        """(features [B, M, D] with zeros after each slide's end, mask [B, M]), for code that must have rectangles.

        The mask is False for padding *and* for empty slots: whoever uses the rectangle must use the mask.
        """
        b, m = len(self), int(self.lengths.max())
        column = torch.cat([torch.arange(int(n)) for n in self.lengths]).to(self.features.device)
        features = self.features.new_zeros(b, m, self.width)
        mask = torch.zeros(b, m, dtype=torch.bool, device=self.features.device)
        features = features.index_put((self.slide_index, column), self.features)
        mask[self.slide_index, column] = self.mask
        return features, mask


@dataclass(frozen=True, eq=False)
class Assignment:
    """Who went where, over the slides' original patches.

    index: [P, R] int32, token within its slide, −1 = dropped.   weight: [P, R] ≥ 0, the method's own; 0 where dropped.
    offsets: [B+1] int64 on the CPU: slide b owns rows offsets[b]:offsets[b+1].

    Heatmaps, exports and coverage statistics read this and nothing that belongs to one method.
    """

    index: Tensor
    weight: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        _require(self.index.ndim == 2 and self.index.dtype == torch.int32, "index must be int32 [P, R]", self.index)
        _require(self.weight.shape == self.index.shape, f"weight must be {tuple(self.index.shape)}", self.weight)
        _require(self.weight.is_floating_point(), "weight must be floating", self.weight)
        right = self.offsets.ndim == 1 and self.offsets.dtype == torch.int64 and self.offsets.device.type == "cpu"
        _require(right, "offsets must be int64 [B+1] on the CPU", self.offsets)
        p = self.index.shape[0]
        _require(
            int(self.offsets[0]) == 0 and int(self.offsets[-1]) == p, f"offsets must run from 0 to {p}", self.offsets
        )
        _require(bool((self.offsets.diff() >= 0).all()), "offsets must not fall", self.offsets)
        if self.index.device.type == "cpu":
            weight = self.weight.detach()
            _require(bool((self.index >= -1).all()), "index must be −1 (dropped) or a token", self.index)
            _require(bool(((weight >= 0) & torch.isfinite(weight)).all()), "weight must be finite and ≥ 0", weight)
            _require(not bool(weight[self.index < 0].any()), "weight must be 0 where index is −1", weight)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, b: int) -> Assignment:
        if not -len(self) <= b < len(self):
            raise IndexError(f"slide {b} of an assignment of {len(self)}")
        b %= len(self)
        rows = slice(int(self.offsets[b]), int(self.offsets[b + 1]))
        return Assignment(self.index[rows], self.weight[rows], torch.tensor([0, rows.stop - rows.start]))

    @property
    def main(self) -> Tensor:
        """[P]: the token each patch went to with its largest weight (the first of equals), −1 where it was dropped."""
        best = torch.where(self.index >= 0, self.weight, -1.0).argmax(1, keepdim=True)
        return self.index.gather(1, best).squeeze(1)

    def then(self, second: Assignment) -> Assignment:
        """This stage followed by `second`, whose "patches" are this stage's tokens: weights multiply, −1 stays dropped.

        Two routes that meet in one token become one route with the sum of their weights.
        """
        if len(self) != len(second):
            raise InputError(f"then: {len(self)} slides here, {len(second)} in the second assignment")
        device = self.index.device
        slide = torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())
        start, size = second.offsets[:-1][slide].to(device), second.offsets.diff()[slide].to(device)
        parts_index, parts_weight = [], []
        for r in range(self.index.shape[1]):
            token = self.index[:, r].long()
            if not token.is_meta and bool((token >= size).any()):  # meta tensors have no values to check
                raise InputError("then: this assignment names tokens that the second one does not have")
            row = (start + token).clamp_(min=0, max=max(len(second.index) - 1, 0))
            here = (token >= 0)[:, None]
            if len(second.index) == 0:
                routes = torch.full((len(token), second.index.shape[1]), -1, dtype=torch.int32, device=device)
                weight = torch.zeros(routes.shape, dtype=second.weight.dtype, device=device)
            else:
                routes = torch.where(here, second.index[row], -1)
                weight = torch.where(here, second.weight[row], 0)
            parts_index.append(routes)
            parts_weight.append(weight * self.weight[:, r, None])
        index, weight = torch.cat(parts_index, 1), torch.cat(parts_weight, 1)
        weight = torch.where(index >= 0, weight, 0)
        for r in range(1, index.shape[1]):  # R is at most 4: the columns are few, the rows many
            for earlier in range(r):
                same = (index[:, r] == index[:, earlier]) & (index[:, r] >= 0)
                weight[:, earlier] += torch.where(same, weight[:, r], 0)
                weight[:, r] = torch.where(same, 0, weight[:, r])
                index[:, r] = torch.where(same, -1, index[:, r])
        return Assignment(index, weight, self.offsets)


@dataclass(frozen=True, eq=False)
class Condensed:
    """What every stage returns, whatever flags it was called with.

    tokens: the new tokens.  assignment: where the patches of the stage's input went.
    summary: [B, D] or None; a slide-level vector such as `[CLS]`, not a token.
    dropped: [B] int64 on the CPU, tokens of the stage's input (patches, for the first) that went nowhere; masked ones,
    which stand for nothing, are not counted.
    losses: weighted scalars, to be added to the task's loss.  metrics: raw values worth a curve.
    predictions: auxiliary outputs that a model's own heads supervise.
    """

    tokens: TokenBatch
    assignment: Assignment
    dropped: Tensor
    summary: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        b = len(self.tokens)
        _require(len(self.assignment) == b, f"assignment must have {b} slides", self.assignment.offsets)
        right = self.dropped.shape == (b,) and self.dropped.dtype == torch.int64 and self.dropped.device.type == "cpu"
        _require(right, f"dropped must be int64 [{b}] on the CPU", self.dropped)
        if self.summary is not None:
            _require(self.summary.ndim == 2 and len(self.summary) == b, f"summary must be [{b}, D]", self.summary)
        for name, loss in self.losses.items():
            _require(loss.ndim == 0, f"losses[{name!r}] must be a scalar", loss)
        if self.assignment.index.device.type == "cpu" and len(self.assignment.index):
            slide = torch.repeat_interleave(torch.arange(b), self.assignment.offsets.diff())
            within = self.assignment.index < self.tokens.lengths[slide, None]
            _require(bool(within.all()), "assignment names a token its slide does not have", self.assignment.index)


def offsets_of(lengths: Tensor | Sequence[int]) -> Tensor:
    """[B] lengths to [B+1] offsets, int64 on the CPU."""
    lengths = torch.as_tensor(lengths, dtype=torch.int64)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _require(ok: bool, message: str, value: Tensor) -> None:  # noqa: FBT001
    if not ok:
        found = f"{value.dtype} {tuple(value.shape)} on {value.device}"
        if value.numel() and value.numel() <= 8:
            found += f" = {value.tolist()}"
        raise InputError(f"{message}; got {found}")
