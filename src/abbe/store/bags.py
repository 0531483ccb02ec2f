"""One door to feature files of every layout."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from abbe.errors import BagError, ConfigError, nearest
from abbe.store import clam, gigapath, histgen, slidechat, stamp, tensors, trident, wsidata
from abbe.store.aliases import same_encoder
from abbe.store.detect import exists, layout_of
from abbe.store.parts import Overrides, as_bag_error
from abbe.types import Bag

_MODULES: tuple[ModuleType, ...] = (clam, gigapath, histgen, slidechat, stamp, tensors, trident, wsidata)
_BY_NAME: dict[str, ModuleType] = {module.NAME: module for module in _MODULES}
LAYOUTS = tuple(_BY_NAME)
WRITTEN = tuple(name for name, module in _BY_NAME.items() if hasattr(module, "write"))
"""layouts that Abbe writes"""

__all__ = ["LAYOUTS", "WRITTEN", "layout_of", "peek_bag", "read_bag", "suffix_of", "write_bag"]


def read_bag(
    path: str | Path,
    layout: str = "auto",
    *,
    patch_size_level0: float | None = None,
    mpp: float | None = None,
    level0_size: tuple[int, int] | None = None,
    encoder: str | None = None,
    width: int | None = None,
    stride_level0: float | None = None,
) -> Bag:
    """The bag in a feature file, every cross-check done.

    layout: one of LAYOUTS, or "auto" to tell it from the content (`layout_of` says which that is).
    patch_size_level0: side of a patch in level-0 pixels, for files that do not say it.
    mpp: microns a pixel at level 0, for files that do not say it or say it wrongly.
    level0_size: (width, height) of the slide in pixels, for files that do not say it.
    stride_level0: step between patches in level-0 pixels, for files of overlapping patches that do not say it.
    encoder, width: what the features must be of; in whichever spelling of the encoder.

    Raises BagError naming file, dataset, row or value, and the option that supplies what is missing.
    """
    path = Path(path)
    _known(layout, ("auto", *LAYOUTS))
    exists(path)
    with as_bag_error(path):
        module = _BY_NAME[layout_of(path) if layout == "auto" else layout]
        bag: Bag = module.read(path, Overrides(patch_size_level0, mpp, level0_size, encoder, stride_level0))
    if encoder is not None and bag.encoder is not None and not same_encoder(bag.encoder, encoder):
        raise BagError(f"{path}: features of {bag.encoder!r}; {encoder!r} is needed. Encode the slide again with it")
    if width is not None and len(bag) and bag.width != width:
        raise BagError(
            f"{path}: features are {bag.width} wide; {width} is needed. They are of another encoder, whatever its name"
        )
    return bag


def peek_bag(path: str | Path, layout: str = "auto") -> tuple[int, int, str | None]:
    """(patches, width, encoder) of a feature file, cheaply. Raises BagError for a file that is no feature file."""
    path = Path(path)
    _known(layout, ("auto", *LAYOUTS))
    exists(path)
    with as_bag_error(path):
        n, width, encoder = _BY_NAME[layout_of(path) if layout == "auto" else layout].peek(path)
    return n, width, encoder


def write_bag(path: str | Path, bag: Bag, layout: str = "trident", *, made_with: dict[str, Any] | None = None) -> None:
    """Commit `bag` under `path`; `made_with` goes into the sidecar. Raises BagError where the layout cannot hold it."""
    _known(layout, WRITTEN)
    _BY_NAME[layout].write(Path(path), bag, made_with)


def suffix_of(layout: str) -> str:
    """What files of a layout that Abbe writes end in."""
    _known(layout, WRITTEN)
    return str(_BY_NAME[layout].SUFFIX)


def _known(layout: str, layouts: tuple[str, ...]) -> None:
    if layout not in layouts:
        raise ConfigError(f"unknown layout {layout!r}. {nearest(layout, layouts)}")
