"""HistGen's layout: `<id>.pt`, one tensor per slide, without coordinates."""

from __future__ import annotations

from pathlib import Path

from abbe.errors import BagError
from abbe.store.parts import Overrides, Peek, assemble, shape_of
from abbe.store.saved import peek_tensor, saved_tensor
from abbe.types import Bag

NAME = "histgen"


def read(path: Path, overrides: Overrides) -> Bag:
    """A bare bag. Raises BagError for anything but one tensor in a `.pt` file."""
    if path.suffix.lower() != ".pt":
        raise BagError(f"{path}: the histgen layout is a .pt file; use --layout tensors for other files of tensors")
    return assemble(path, saved_tensor(path), None, None, overrides, name="tensor")


def peek(path: Path) -> Peek:
    """(N, D, None)."""
    return *shape_of(path, "tensor", peek_tensor(path)), None
