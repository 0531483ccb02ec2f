"""The kind of a feature file: the encoder that made it and the resolution it saw, as far as the file states them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from abbe.errors import BagError
from abbe.store.aliases import same_encoder

ATTRIBUTE = "abbe_kind"
"""attribute of `features` in which Abbe states the kind as JSON"""
MPP_TOLERANCE = 0.02  # relative: tools round the mpp
_SIDE_TOLERANCE = 0.11  # relative: a level within 5 % of the mpp asked for is read as it is, on either side
_SHOWN = 3  # files named per kind
_OWN = ("version", "mpp", "patch_size", "overlap")


@dataclass(frozen=True)
class Kind:
    """How features were made; None is unknown.

    version: of the encoder.   mpp: microns per pixel of the patches that the encoder was given.
    patch_size, overlap: pixels at that mpp.   patch_size_level0, level0_mpp: of the slide, which may differ between
    slides of one kind; they are compared only where the mpp of the patches is unknown.
    """

    encoder: str | None = None
    version: str | None = None
    mpp: float | None = None
    patch_size: float | None = None
    overlap: float | None = None
    patch_size_level0: float | None = None
    level0_mpp: float | None = None

    def __str__(self) -> str:
        name = self.encoder or "unknown encoder"
        size = "patch size unknown" if self.patch_size is None else f"patches of {self.patch_size:g} px"
        if self.patch_size is None and self.patch_size_level0 is not None:
            size = f"patches of {self.patch_size_level0:g} px at level 0"
        return ", ".join(
            [
                name if self.version is None else f"{name} version {self.version}",
                "mpp unknown" if self.mpp is None else f"mpp {self.mpp:g}",
                size,
                "overlap unknown" if self.overlap is None else f"overlap {self.overlap:g} px",
            ]
        )

    def stated(self) -> dict[str, Any]:
        """The keys that are known, as plain JSON values."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def own(self) -> dict[str, Any]:
        """Of the known keys, those that layouts have no place for, as plain JSON values."""
        return {key: value for key, value in self.stated().items() if key in _OWN}

    def differences(self, other: Kind) -> list[str]:
        """Every key that both state and that differs, with both values."""
        found = []
        if None not in (self.encoder, other.encoder) and not same_encoder(self.encoder, other.encoder):
            found.append(f"encoder {self.encoder} and {other.encoder}")
        if None not in (self.version, other.version) and self.version != other.version:
            found.append(f"encoder version {self.version} and {other.version}")
        for key, tolerance in (("mpp", MPP_TOLERANCE), ("patch_size", 0.0), ("overlap", 0.0)):
            found += _apart(key, getattr(self, key), getattr(other, key), tolerance)
        if self.mpp is None or other.mpp is None:
            if self.side_um is not None and other.side_um is not None:
                found += _apart("side of a patch in microns", self.side_um, other.side_um, _SIDE_TOLERANCE)
            elif self.side_um is None and other.side_um is None:
                sizes = self.patch_size_level0, other.patch_size_level0
                found += _apart("patch size at level 0", *sizes, MPP_TOLERANCE)
        return found

    @property
    def side_um(self) -> float | None:
        """Side of a patch in microns, if known."""
        if self.mpp is not None and self.patch_size is not None:
            return self.mpp * self.patch_size
        if self.level0_mpp is not None and self.patch_size_level0 is not None:
            return self.level0_mpp * self.patch_size_level0
        return None

    def filled(self, other: Kind) -> Kind:
        """This kind, with what it does not know taken from `other`."""
        return Kind(**{**other.stated(), **self.stated()})


def parse_kind(where: object, values: Any) -> Kind:
    """A Kind from plain JSON values. Raises BagError naming `where` and the key that is unknown or of another type."""
    names = {item.name for item in dataclasses.fields(Kind)}
    if not isinstance(values, Mapping):
        raise BagError(f"{where}: the kind of the features is {str(values)[:80]!r}; expected an object")
    for key, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
        if key not in names or not (isinstance(value, str) if key in ("encoder", "version") else number):
            raise BagError(
                f"{where}: the kind of the features has {key!r} = {str(value)[:80]!r}; encode the slide again"
            )
    return Kind(**values)


def group_by_kind(kinds: Mapping[str, Kind]) -> list[tuple[Kind, list[str]]]:
    """Names grouped so that no two kinds of a group differ; the kind of a group has what any of its files states."""
    groups: list[tuple[Kind, list[str]]] = []
    for name, kind in kinds.items():
        for number, (shared, names) in enumerate(groups):
            if not shared.differences(kind):
                groups[number] = (shared.filled(kind), [*names, name])
                break
        else:
            groups.append((kind, [name]))
    return groups


def list_groups(groups: Iterable[tuple[Kind, list[str]]]) -> str:
    """One sentence that lists the kinds, each with the number of its files and some of their names."""
    return "; ".join(
        f"{kind}: {len(names)} ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
        for kind, names in groups
    )


def common_kind(kinds: Iterable[Kind]) -> Kind:
    """What the files have in common: keys on which none differs; level-0 lengths only if all state the same."""
    kinds, shared = list(kinds), {}
    for key in (item.name for item in dataclasses.fields(Kind)):
        values = [value for kind in kinds if (value := getattr(kind, key)) is not None]
        if values and not any(Kind(**{key: values[0]}).differences(Kind(**{key: value})) for value in values):
            shared[key] = values[0]
    for key in ("patch_size_level0", "level0_mpp"):
        if len({getattr(kind, key) for kind in kinds}) > 1:
            shared.pop(key, None)
    return Kind(**shared)


def unknown_in_part(kinds: Mapping[str, Kind]) -> list[str]:
    """One sentence for every key that some files state and others do not."""
    said = []
    for key in ("version", "mpp", "patch_size", "overlap"):
        silent = [name for name, kind in kinds.items() if getattr(kind, key) is None]
        if 0 < len(silent) < len(kinds):
            said.append(
                f"{key.replace('_', ' ')} of the features is not stated by {len(silent)} of {len(kinds)} files "
                f"({', '.join(silent[:_SHOWN])}{', …' if len(silent) > _SHOWN else ''}), so it cannot be compared"
            )
    return said


def _apart(key: str, one: float | None, other: float | None, tolerance: float) -> list[str]:
    if one is None or other is None or abs(one - other) <= tolerance * max(one, other) + 1e-6:
        return []
    return [f"{key.replace('_', ' ')} {one:g} and {other:g}"]
