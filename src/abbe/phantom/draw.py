"""Random draws keyed by values instead of a generator's state: the same in any order, process or library version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def number(*key: object) -> int:
    """A number in [0, 2**256) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest())


def pick(items: Sequence[T], *key: object) -> T:
    """One of the items, chosen by the key."""
    return items[number(*key) % len(items)]


def shuffled(items: Iterable[T], *key: object) -> list[T]:
    """The items in an order that depends only on the key and on each item's `repr`, which must differ."""
    return sorted(items, key=lambda item: number(*key, item))
