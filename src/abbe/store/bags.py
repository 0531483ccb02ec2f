"""Reading and writing feature files of every layout."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from abbe.errors import BagError, ConfigError, nearest
from abbe.store import clam, commit, gigapath, histgen, slidechat, stamp, tensors, trident, wsidata
from abbe.store.aliases import same_encoder
from abbe.store.detect import check_exists, layout_of
from abbe.store.kind import Kind, parse_kind
from abbe.store.parts import Overrides
from abbe.types import MPP, Bag, Px0

_MODULES: tuple[ModuleType, ...] = (clam, gigapath, histgen, slidechat, stamp, tensors, trident, wsidata)
_BY_NAME: dict[str, ModuleType] = {module.NAME: module for module in _MODULES}
LAYOUTS = tuple(_BY_NAME)
WRITTEN = tuple(name for name, module in _BY_NAME.items() if hasattr(module, "write"))
"""layouts that Abbe can write"""

__all__ = ["LAYOUTS", "WRITTEN", "layout_of", "peek_bag", "read_bag", "read_kind", "suffix_of", "write_bag"]


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
    """Read a feature file and check its content.

    layout: one of LAYOUTS, or "auto" to detect it from the content, as `layout_of` does.
    patch_size_level0: side of a patch in level-0 pixels, if the file does not state it.
    mpp: microns per pixel at level 0; replaces the file's.
    level0_size: (width, height) of the slide in level-0 pixels, if the file does not state it.
    stride_level0: step between overlapping patches in level-0 pixels, if the file does not state it.
    encoder, width: required of the features; any spelling of the encoder's name will do.

    Raises BagError naming file, dataset, row or value, and the option that supplies what is missing; ConfigError for
    an unknown layout or a length that is not positive.
    """
    path, size, stride = Path(path), patch_size_level0, stride_level0
    overrides = Overrides(
        None if size is None else Px0(size),
        None if mpp is None else MPP(mpp),
        level0_size,
        encoder,
        None if stride is None else Px0(stride),
    )
    bag: Bag = _module(path, layout).read(path, overrides)
    if encoder is not None and bag.encoder is not None and not same_encoder(bag.encoder, encoder):
        raise BagError(f"{path}: features of {bag.encoder!r}, expected {encoder!r}; encode the slide again with it")
    if width is not None and len(bag) and bag.width != width:
        raise BagError(f"{path}: features have width {bag.width}, expected {width}; they are of another encoder")
    return bag


def peek_bag(path: str | Path, layout: str = "auto") -> tuple[int, int, str | None]:
    """(patches, width, encoder) of a feature file, without reading its features where the format permits.

    Raises BagError for what is not a feature file.
    """
    path = Path(path)
    n, width, encoder = _module(path, layout).peek(path)
    return n, width, encoder


def read_kind(path: str | Path, layout: str = "auto", *, encoder: str | None = None) -> Kind:
    """How the features of a file were made, as far as its layout or its sidecar states it.

    encoder: whose features, if a store has those of several.

    Raises BagError for what is not a feature file, and for a value that is not a number.
    """
    path = Path(path)
    module = _module(path, layout)
    if module is wsidata:
        found = wsidata.kind(path, encoder)
    else:
        found = module.kind(path) if hasattr(module, "kind") else Kind(module.peek(path)[2])
    made_with = (commit.fresh_sidecar(path) or {}).get("made_with", {})
    beside = parse_kind(path, made_with.get("kind", {}))
    version = made_with.get("encoder_version")
    return found.filled(beside).filled(Kind(version=None if version is None else str(version)))


def write_bag(path: str | Path, bag: Bag, layout: str = "trident", *, made_with: dict[str, Any] | None = None) -> None:
    """Commit `bag` as `path`; `made_with` goes into the sidecar. Raises BagError if the layout cannot store the bag."""
    _check_name(layout, WRITTEN)
    _BY_NAME[layout].write(Path(path), bag, made_with)


def suffix_of(layout: str) -> str:
    """The suffix of files of a layout that Abbe can write."""
    _check_name(layout, WRITTEN)
    return str(_BY_NAME[layout].SUFFIX)


def _module(path: Path, layout: str) -> ModuleType:
    _check_name(layout, ("auto", *LAYOUTS))
    check_exists(path)
    return _BY_NAME[layout_of(path) if layout == "auto" else layout]


def _check_name(layout: str, layouts: tuple[str, ...]) -> None:
    if layout not in layouts:
        raise ConfigError(f"unknown layout {layout!r}. {nearest(layout, layouts)}")
