"""What every tissue is drawn with: views, nuclei on a lattice, and blending.

A layer is the pair of densities, haematoxylin and eosin, that a tissue has over the core of a :class:`View`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abbe.phantom.render.lattice import Lattice
from abbe.phantom.render.noise import F32, Index, Region, key, step, value_noise
from abbe.phantom.render.stain import Stain

_ANGLES = np.arange(256) * (math.pi / 256)
_COMPASS = np.round([np.cos(_ANGLES), np.sin(_ANGLES)], 6).astype(np.float32)

Layer = tuple[F32, F32]  # haematoxylin and eosin densities


@dataclass(frozen=True)
class View:
    """What to paint. core: the pixels wanted.  wide: core with a margin, for fields that nuclei outside depend on."""

    core: Region
    wide: Region
    salt: int
    stain: Stain

    def key(self, *salts: int) -> int:
        return key(self.salt, *salts)

    def inner(self, field: F32) -> F32:
        """A field over ``wide``, cut to ``core``."""
        cut = self.core.x0 - self.wide.x0
        return field[cut:-cut, cut:-cut]

    def noise(self, cell: int, salt: int) -> F32:
        return value_noise(self.core, cell, self.key(salt))


@dataclass(frozen=True)
class Nuclei:
    """Drawn nuclei, by pixel. cover: 0 to 1.  radius: relative distance from the centre.  who: number of the object."""

    cover: F32
    radius: F32
    who: Index

    def ink(self, dark: F32, chromatin: F32 | float, rim: float) -> F32:
        """Haematoxylin density. dark: per object.  chromatin: texture.  rim: contrast of the darker membrane."""
        edge = step(self.radius, 0.8, 0.4)
        return self.cover * dark.ravel()[self.who] * np.maximum(1 - rim * (1 - edge) + chromatin, 0.15)


def draw(
    view: View,
    lattice: Lattice,
    a: F32,
    b: F32,
    line: tuple[F32, F32],
    present: NDArray[np.bool_],
    ragged: float = 0.12,
    soft: float = 1.6,
) -> Nuclei:
    """Draw a lattice of elliptic nuclei with slightly uneven outlines. soft: width of the edge in pixels."""
    q, who = lattice.ellipses(a, b, line[0], line[1], present)
    radius = np.sqrt(q)
    radius *= 1 + ragged * value_noise(view.core, 7, key(view.salt, 901, lattice.cell))
    size = np.minimum(a, b).ravel()[who]
    cover = np.clip((1 - radius) * size * np.float32(1 / soft) + 0.5, 0, 1)
    return Nuclei(cover, radius, who)


def random_directions(lattice: Lattice) -> tuple[F32, F32]:
    """A random direction for every object."""
    angle = (lattice.u(12) * 256).astype(np.intp)
    return _COMPASS[0][angle], _COMPASS[1][angle]


def round_cells(view: View, cell: int, salt: int, chance: float | F32, radius: float, dark: float) -> F32:
    """Haematoxylin of small round dark nuclei (lymphocytes). chance: probability of one at each site."""
    lattice = Lattice.over(view.core, cell, view.key(salt), 0.42)
    a = radius * (1 + 0.12 * lattice.bell(4))
    b = a * (1 - 0.25 * lattice.u(6))
    nuclei = draw(view, lattice, a, b, random_directions(lattice), lattice.u(7) < chance, ragged=0.08)
    shade = dark * (1 + 0.14 * lattice.bell(8))
    return nuclei.ink(shade, 0.16 * view.stain.grain * view.noise(3, salt + 1), 0.12)


def blend(under: Layer, share: F32, over: Callable[[View], Layer], view: View) -> Layer:
    """Mix ``over`` into ``under`` by ``share``, 0 to 1. ``over`` is not painted if the share is 0 everywhere."""
    if not share.any():
        return under
    h, e = over(view)
    return under[0] + (h - under[0]) * share, under[1] + (e - under[1]) * share
