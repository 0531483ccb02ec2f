"""One door to feature files of every layout."""

from __future__ import annotations

from pathlib import Path

from abbe.errors import BagError, ConfigError, nearest
from abbe.store import trident
from abbe.types import Bag

LAYOUTS = ("trident",)


def read_bag(path: str | Path, layout: str = "auto", *, patch_size_level0: float | None = None) -> Bag:
    """The bag in a feature file.

    layout: one of LAYOUTS, or "auto" to tell it from the file.
    patch_size_level0: side of a patch in level-0 pixels, for files that do not say it.

    Raises BagError naming file, dataset, value and the option that supplies what is missing.
    """
    path = Path(path)
    _known(layout, ("auto", *LAYOUTS))
    if not path.is_file():
        raise BagError(f"{path}: no such file")
    if path.suffix not in (".h5", ".hdf5"):
        raise BagError(f"{path}: expected a feature file ending in .h5")
    return trident.read_features(path, patch_size_level0=patch_size_level0)


def peek_bag(path: str | Path) -> tuple[int, int, str | None]:
    """(patches, width, encoder) of a feature file, cheaply. Raises BagError for a file that is no feature file."""
    return trident.peek(Path(path))


def write_bag(path: str | Path, bag: Bag, layout: str = "trident") -> None:
    """Commit `bag` under `path`. Raises BagError where the layout cannot hold it."""
    _known(layout, LAYOUTS)
    trident.write_features(Path(path), bag)


def _known(layout: str, layouts: tuple[str, ...]) -> None:
    if layout not in layouts:
        raise ConfigError(f"unknown layout {layout!r}. {nearest(layout, layouts)}")
