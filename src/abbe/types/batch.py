"""What flows between stages: tokens of several slides, packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from abbe.errors import BagError, InputError
from abbe.types.bag import Bag
from abbe.types.packed import offsets_of, require, require_offsets


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Tokens of B slides, packed one after another, never padded.

    features: [T, D] floating.             positions: [T, 2] float32 in patch units, or None.
    mass: [T] ≥ 0, patches a token represents (1 for a patch).
    mask: [T] bool, False for a slot without patches; its token is zero and must not be pooled.
    weight: [T] ≥ 0, of soft selection; 1 by default.
    origin: [T] int64, row in the slide's bag, or slot number.
    offsets: [B+1] int64, on the CPU: slide b has the rows offsets[b]:offsets[b+1].
    lengths0: [B] int64, on the CPU: patches of the slide's bag.    slide_ids: B strings.

    offsets and lengths0 stay on the CPU so that loops over slides never wait for a device.

    Raises InputError naming the field whose shape, type, device or values do not fit.
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
        require(features.ndim == 2 and features.is_floating_point(), "features must be floating [T, D]", features)
        t = features.shape[0]
        for name, dtype in (("mass", None), ("mask", torch.bool), ("weight", None), ("origin", torch.int64)):
            value: Tensor = getattr(self, name)
            require(value.shape == (t,), f"{name} must be [T] = [{t}]", value)
            require(value.device == features.device, f"{name} must be on {features.device}", value)
            right = value.is_floating_point() if dtype is None else value.dtype == dtype
            require(right, f"{name} must be {dtype or 'floating'}", value)
        if self.positions is not None:
            require(self.positions.shape == (t, 2), f"positions must be [T, 2] = [{t}, 2]", self.positions)
            require(self.positions.device == features.device, f"positions must be on {features.device}", self.positions)
        b, lengths0 = len(self.slide_ids), self.lengths0
        require_offsets(self.offsets, t, b)
        right = lengths0.shape == (b,) and lengths0.dtype == torch.int64 and lengths0.device.type == "cpu"
        require(right, f"lengths0 must be int64 [{b}] on the CPU for {b} slides", lengths0)
        require(bool((lengths0 >= 0).all()), "lengths0 must not be negative", lengths0)
        if features.device.type == "cpu":  # on a GPU these checks would synchronise at every construction
            for name in ("mass", "weight"):
                value = getattr(self, name).detach()
                right = bool(((value >= 0) & torch.isfinite(value)).all())
                require(right, f"{name} must be finite and not negative", value)

    @classmethod
    def pack(cls, bags: Sequence[Bag], *, dtype: torch.dtype = torch.float32) -> TokenBatch:
        """Bags one after another, each patch a token of mass 1. Positions are kept if every bag has them.

        Raises InputError for no bags, BagError for bags of different widths.
        """
        if not bags:
            raise InputError("pack: no bags; a batch needs at least one")
        widths = {bag.slide_id: bag.width for bag in bags}
        if len(set(widths.values())) > 1:
            raise BagError(f"pack: all bags of a batch must have the same width, got {widths}")
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

    def __repr__(self) -> str:
        return f"TokenBatch({len(self)} slides, {len(self.features)} tokens × {self.width})"

    @property
    def width(self) -> int:
        """D, the width of a token."""
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
            raise IndexError(f"slide {b} is out of range for a batch of {len(self)}")
        b %= len(self)
        rows = slice(int(self.offsets[b]), int(self.offsets[b + 1]))
        one = torch.tensor([0, rows.stop - rows.start])
        return self.rows(rows, one, lengths0=self.lengths0[b : b + 1], slide_ids=(self.slide_ids[b],))

    def rows(self, rows: Tensor | slice, offsets: Tensor, **of_slides: Any) -> TokenBatch:
        """The tokens at `rows`, in slide order. offsets: [B+1] of the result.   of_slides: fields of the slides."""
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
        """The batch on `device` with features in `dtype`; offsets and lengths0 stay on the CPU."""
        moved: dict[str, Any] = {"features": self.features.to(device=device, dtype=dtype)}
        for name in ("positions", "mass", "mask", "weight", "origin"):
            value = getattr(self, name)
            moved[name] = None if value is None else value.to(device=device)
        return replace(self, **moved)
