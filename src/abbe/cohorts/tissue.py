"""Procedural H&E: a tissue class, a place and a seed give pixels at 0.5 microns a pixel.

Each class is a layer of two densities, haematoxylin and eosin, and the pixels follow from Beer and Lambert:
``RGB = background * 10 ** -(H * vector_H + E * vector_E)``. Layers are functions of world coordinates
(:mod:`abbe.cohorts.noise`), so tiles meet without a seam, bit for bit. Where a map of several classes is rendered, each
pixel shows its own class's layer.

Tumour subtype ``a`` forms glands, subtype ``b`` grows in sheets and keratinises; grades 1 to 3 lose those marks and
gain pleomorphism. The marks of a2 and b2 come in foci and are often absent from a single patch: single patches of the
two are meant to be told apart in most cases only: that difficulty was fixed before anything was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from abbe.cohorts.noise import (
    F32,
    Index,
    Lattice,
    Region,
    directions,
    fbm,
    grid_hash,
    hashed,
    key,
    smeared,
    step,
    turns,
    unit,
    value_noise,
    warped_cells,
)
from abbe.errors import InputError

TISSUE_CLASSES = (
    "stroma",
    "muscle",
    "fat",
    "gland",
    "lymphocytes",
    "necrosis",
    "tumour_a1",
    "tumour_a2",
    "tumour_a3",
    "tumour_b1",
    "tumour_b2",
    "tumour_b3",
)
GLASS = 255  # value in class maps: no tissue
MPP = 0.5

_BLUR = 2  # pixels the optical blur reaches
_MARGIN = 24  # pixels around a region in which an object's middle may lie and still show
_LEVELS = 4096  # steps of the optical density table over [0, _OD_MAX]
_OD_MAX = 3.0
_ANGLES = np.arange(256) * (math.pi / 256)
_COMPASS = np.round([np.cos(_ANGLES), np.sin(_ANGLES)], 6).astype(np.float32)

Layer = tuple[F32, F32]  # haematoxylin and eosin densities


@dataclass(frozen=True)
class Stain:
    """How a laboratory and its scanner show tissue.

    ``haematoxylin, eosin``: unit optical density vectors (R, G, B); ``strengths``: their multipliers;
    ``background``: RGB of bare glass; ``blur``: sigma in pixels; ``noise``: sd of the sensor in grey levels;
    ``density``: multiplier of nucleus counts; ``grain``: multiplier of chromatin and cytoplasm texture.
    """

    haematoxylin: tuple[float, float, float] = (0.61, 0.72, 0.33)
    eosin: tuple[float, float, float] = (0.12, 0.90, 0.42)
    strengths: tuple[float, float] = (1.0, 0.92)
    background: tuple[float, float, float] = (243.0, 242.0, 244.0)
    blur: float = 0.7
    noise: float = 1.5
    density: float = 1.0
    grain: float = 1.0


def _unit_vector(vector: np.ndarray) -> tuple[float, float, float]:
    r, g, b = (vector / np.linalg.norm(vector)).tolist()
    return (round(r, 6), round(g, 6), round(b, 6))


def site_stain(site: int, setting: int, seed: int) -> Stain:
    """The stain of a site in one of its three settings: the site moves hue and texture, the setting the strengths.

    Raises InputError when ``site`` is negative or ``setting`` is not 0, 1 or 2.
    """
    if site < 0:
        raise InputError(f"site_stain: site must be at least 0, got {site}")
    if setting not in (0, 1, 2):
        raise InputError(f"site_stain: setting must be 0, 1 or 2, got {setting}")
    base = Stain()
    rng = np.random.default_rng([seed & 0xFFFFFFFF, site, 7])
    tone = rng.uniform(-1, 1, 6)
    haematoxylin = np.array(base.haematoxylin) + 0.06 * tone[:3]
    eosin = np.maximum(np.array(base.eosin) + 0.06 * tone[3:], 0.02)
    strong = np.array(base.strengths) * rng.uniform(0.85, 1.15, 2)
    blur, noise, density, grain = rng.uniform((0.55, 0.8, 0.9, 0.85), (0.95, 2.5, 1.08, 1.15))
    glass = np.array(base.background) + rng.uniform(-3, 3, 3)
    rng = np.random.default_rng([seed & 0xFFFFFFFF, site, 11, setting])
    strong *= np.array([(1.0, 1.0), (1.12, 0.9), (0.88, 1.14)][setting]) * rng.uniform(0.97, 1.03, 2)
    r, g, b = glass.round(2).tolist()
    return Stain(
        haematoxylin=_unit_vector(haematoxylin),
        eosin=_unit_vector(eosin),
        strengths=(round(float(strong[0]), 4), round(float(strong[1]), 4)),
        background=(r, g, b),
        blur=round(float(blur), 4),
        noise=round(float(noise), 4),
        density=round(float(density), 4),
        grain=round(float(grain), 4),
    )


# ---------------------------------------------------------------------------------------------------- shared parts


@dataclass(frozen=True)
class View:
    """What a layer is asked for: ``core``, the pixels wanted; ``wide``, those whose fields decide about nuclei."""

    core: Region
    wide: Region
    salt: int
    stain: Stain

    def key(self, *salts: int) -> int:
        return key(self.salt, *salts)

    def inner(self, field: F32) -> F32:
        """A field over ``wide`` cut to ``core``."""
        cut = self.core.x0 - self.wide.x0
        return field[cut:-cut, cut:-cut]

    def noise(self, cell: int, salt: int) -> F32:
        return value_noise(self.core, cell, self.key(salt))


@dataclass(frozen=True)
class Nuclei:
    """Drawn nuclei: ``cover`` 0 to 1, ``radius`` the relative distance from the middle, ``who`` the object shown."""

    lattice: Lattice
    cover: F32
    radius: F32
    who: Index

    def each(self, values: F32) -> F32:
        """A value per object, painted over that object's pixels."""
        return values.ravel()[self.who]

    def ink(self, dark: F32, chromatin: F32 | float, rim: float) -> F32:
        """Haematoxylin density: darkness per object, clumps of chromatin, a darker membrane."""
        edge = step(self.radius, 0.8, 0.4)
        return self.cover * self.each(dark) * np.maximum(1 - np.float32(rim) * (1 - edge) + chromatin, np.float32(0.15))


def _draw(
    view: View,
    lattice: Lattice,
    a: F32,
    b: F32,
    line: tuple[F32, F32],
    present: NDArray[np.bool_],
    ragged: float = 0.12,
    soft: float = 1.6,
) -> Nuclei:
    """Rasterise a lattice of elliptic nuclei with slightly uneven outlines; ``soft``: width of the edge in pixels."""
    q, who = lattice.ellipses(a, b, line[0], line[1], present)
    radius = np.sqrt(q)
    radius *= 1 + np.float32(ragged) * value_noise(view.core, 7, key(view.salt, 901, lattice.cell))
    size = np.minimum(a, b).ravel()[who]
    cover = np.clip((1 - radius) * size * np.float32(1 / soft) + np.float32(0.5), 0, 1)
    return Nuclei(lattice, cover, radius, who)


def _anywhere(lattice: Lattice, channel: int = 12) -> tuple[F32, F32]:
    """A random direction for every object."""
    angle = (lattice.u(channel) * np.float32(256)).astype(np.intp)
    return _COMPASS[0][angle], _COMPASS[1][angle]


def _round_cells(view: View, cell: int, salt: int, chance: float | F32, radius: float, dark: float) -> F32:
    """Ink of small round dark nuclei (lymphocytes), ``chance`` of each site of the lattice being taken."""
    lattice = Lattice.over(view.core, cell, view.key(salt), 0.42)
    a = np.float32(radius) * (1 + np.float32(0.12) * lattice.bell(4))
    b = a * (1 - np.float32(0.25) * lattice.u(6))
    nuclei = _draw(view, lattice, a, b, _anywhere(lattice), lattice.u(7) < chance, ragged=0.08)
    shade = np.float32(dark) * (1 + np.float32(0.14) * lattice.bell(8))
    return nuclei.ink(shade, np.float32(0.16 * view.stain.grain) * view.noise(3, salt + 1), 0.12)


def _blend(under: Layer, share: F32, over: Callable[[View], Layer], view: View) -> Layer:
    """``over`` laid on ``under`` by ``share``, 0 to 1; not computed where no pixel has any (the result is the same)."""
    if not share.any():
        return under
    h, e = over(view)
    return under[0] + (h - under[0]) * share, under[1] + (e - under[1]) * share


# ------------------------------------------------------------------------------------------------- normal tissues


def _fibrous(
    view: View,
    *,
    turn: int,
    ripple: float,
    grain: int,
    reach: int,
    eosin: float,
    contrast: float,
    cleft: float,
    cell: int,
    half_axes: tuple[float, float],
    chance: float,
) -> Layer:
    """Fibres along a smooth field of directions, clefts between bundles, and nuclei lying along the fibres."""
    lines = directions(view.wide, turn, view.key(1), ripple)
    along = view.inner(lines[0]), view.inner(lines[1])
    fine = smeared(view.core, along, grain, view.key(2), reach=reach, taps=4)
    bundle = smeared(view.core, along, 3 * grain, view.key(3), reach=2 * reach, taps=4)
    patchy = fbm(view.core, 96, view.key(4), 2)
    e = np.float32(eosin) * (1 + np.float32(contrast) * (fine * np.float32(0.6) + bundle + np.float32(0.5) * patchy))
    e *= 1 - np.float32(0.85) * step(bundle + np.float32(0.35) * fine + np.float32(0.6) * patchy, cleft, -0.7)
    np.maximum(e, np.float32(0.01), out=e)
    lattice = Lattice.over(view.core, cell, view.key(5), 0.42)
    wobble = np.float32(0.25) * lattice.bell(13)
    ux, uy = lattice.sample(lines[0], view.wide), lattice.sample(lines[1], view.wide)
    ux, uy = ux - wobble * uy, uy + wobble * ux
    length: F32 = np.sqrt(ux * ux + uy * uy)
    a = np.float32(half_axes[0]) * (1 + np.float32(0.2) * lattice.bell(4))
    b = np.float32(half_axes[1]) * (1 + np.float32(0.2) * lattice.bell(6))
    taken = lattice.u(8) < np.float32(chance * view.stain.density)
    nuclei = _draw(view, lattice, a, b, (ux / length, uy / length), taken, ragged=0.1, soft=1.4)
    dark = np.float32(0.8) * (1 + np.float32(0.2) * lattice.bell(9))
    h = np.float32(0.1) * e + nuclei.ink(dark, np.float32(0.15 * view.stain.grain) * view.noise(3, 6), 0.15)
    return h, e * (1 - np.float32(0.6) * nuclei.cover)


def _stroma(view: View) -> Layer:
    h, e = _fibrous(
        view, turn=150, ripple=0.35, grain=4, reach=18, eosin=0.31, contrast=0.2, cleft=-1.75, cell=36,
        half_axes=(13.0, 3.0), chance=0.5,
    )  # fmt: skip
    return h + _round_cells(view, 40, 20, 0.1, 6.0, 0.95), e


def _muscle(view: View) -> Layer:
    return _fibrous(
        view, turn=360, ripple=0.06, grain=6, reach=30, eosin=0.45, contrast=0.13, cleft=-1.95, cell=38,
        half_axes=(14.0, 3.6), chance=0.42,
    )  # fmt: skip


def _fat(view: View) -> Layer:
    warp = (
        np.float32(9) * value_noise(view.wide, 48, view.key(1)),
        np.float32(9) * value_noise(view.wide, 48, view.key(2)),
    )
    cells = warped_cells(view.wide, warp, 104, view.key(3), 0.34)
    gap = cells.f2 - cells.f1
    wall = np.float32(2.6) + np.float32(1.0) * value_noise(view.wide, 20, view.key(4))
    membrane = view.inner(1 - step(gap, wall, 2.5))
    corner = step(view.inner(cells.f1), 62.0, 10.0) * (1 - step(view.inner(gap), 9.0, 8.0))
    e = np.float32(0.3) * np.maximum(membrane, np.float32(0.6) * corner) + np.float32(0.012)
    lattice = Lattice.over(view.core, 30, view.key(5), 0.4)
    near = lattice.sample(gap, view.wide) < 6
    a = np.float32(7) * (1 + np.float32(0.2) * lattice.bell(4))
    nuclei = _draw(view, lattice, a, a * np.float32(0.45), _anywhere(lattice), near & (lattice.u(6) < 0.45))
    return nuclei.ink(np.float32(0.75) + 0 * a, 0.0, 0.0) + np.float32(0.12) * e, e


def _gland(view: View) -> Layer:
    """Round glands side by side: clear lumen, tall epithelium with a basal ring of regular nuclei, stroma between."""
    warp = np.float32(8) * view.noise(56, 1), np.float32(8) * view.noise(56, 2)
    cells = warped_cells(view.core, warp, 128, view.key(3), 0.22)
    wall = np.float32(46) + np.float32(14) * unit(cells.h, 3)
    depth = np.minimum(wall - cells.f1, (cells.f2 - cells.f1) * np.float32(0.5) - np.float32(6))
    height = np.float32(24) + np.float32(6) * unit(cells.h, 4)
    inside = step(depth, 0.0, 2.0)
    lumen = step(depth + np.float32(2.2) * view.noise(12, 4), height, 3.0)
    # Nuclei in polar coordinates: `turns` around the gland cut into equal cells, `depth` across the epithelium.
    count = np.rint(wall * np.float32(2 * math.pi / 12.5))
    around = turns(cells.dx, cells.dy) * count
    cell = np.minimum(np.floor(around), count - 1)
    h_cell = hashed(cell.astype(np.int64), cells.h.astype(np.int64), view.key(5))
    pitch = np.float32(2 * math.pi) * cells.f1 / count
    tangent = (around - cell - np.float32(0.5) + np.float32(0.24) * (unit(h_cell, 1) - np.float32(0.5))) * pitch
    radial = depth - np.float32(8.5) - np.float32(5) * (unit(h_cell, 2) - np.float32(0.5))
    size = np.float32(4.6) + unit(h_cell, 3)
    radius = np.sqrt(tangent * tangent * np.float32(1.25) + radial * radial * np.float32(0.55)) / size
    radius *= 1 + np.float32(0.08) * view.noise(6, 6)
    cover = inside * np.clip((1 - radius) * size * np.float32(0.7) + np.float32(0.5), 0, 1)
    shade = np.float32(0.66) + np.float32(0.16) * unit(h_cell, 4)
    chromatin = np.float32(0.14 * view.stain.grain) * view.noise(3, 7)
    ink = cover * shade * (np.float32(0.85) + np.float32(0.15) * step(radius, 0.8, 0.4) + chromatin)
    # Some cells hold a pale drop of mucin between nucleus and lumen.
    mucin = step(unit(h_cell, 5), 0.55, 0.05) * step(depth, 14.0, 4.0) * (1 - step(np.abs(tangent), pitch * 0.42, 2.0))
    body = inside * (1 - lumen) * (1 - np.float32(0.6) * mucin)
    texture = 1 + np.float32(0.1) * view.noise(5, 8)
    h_stroma, e_stroma = _stroma(replace(view, salt=view.key(9)))
    outside = 1 - inside
    h = outside * h_stroma + body * np.float32(0.12) * texture + ink
    e = outside * e_stroma + body * np.float32(0.2) * texture * (1 - np.float32(0.6) * cover)
    e += lumen * inside * np.float32(0.015)
    return h, e


def _lymphocytes(view: View) -> Layer:
    """Crowded small dark nuclei, here and there the larger and paler cells of a germinal centre."""
    crowd = float(0.93 * view.stain.density)
    h = np.maximum(_round_cells(view, 16, 1, crowd, 6.1, 1.0), _round_cells(view, 21, 3, 0.3, 6.6, 0.85))
    web = np.maximum(1 + np.float32(0.4) * fbm(view.core, 12, view.key(5), 2), np.float32(0.1))
    centre = step(view.noise(240, 6) + np.float32(0.5) * view.noise(50, 7), 1.25, 0.5)

    def germinal(view: View) -> Layer:
        return _round_cells(view, 19, 8, 0.95, 7.0, 0.72), np.float32(0.22) * web

    h, e = _blend((h, np.float32(0.16) * web), centre, germinal, view)
    return h + np.float32(0.08), e


def _necrosis(view: View) -> Layer:
    """Smudgy pink debris with nuclear dust and the pale ghosts of nuclei."""
    smudge, clot = fbm(view.core, 40, view.key(1), 4), fbm(view.core, 6, view.key(2), 2)
    e = np.float32(0.4) * (1 + np.float32(0.16) * smudge + np.float32(0.2 * view.stain.grain) * clot)
    e *= 1 - np.float32(0.8) * step(smudge + np.float32(0.5) * clot, -1.7, -0.5)
    cluster = value_noise(view.wide, 44, view.key(3))
    dust = Lattice.over(view.core, 10, view.key(4), 0.45)
    crowd = np.float32(0.16) + np.float32(0.14) * dust.sample(cluster, view.wide)
    a = np.float32(0.9) + np.float32(2.0) * dust.u(4) * dust.u(5)
    specks = _draw(view, dust, a, a * np.float32(0.8), _anywhere(dust), dust.u(6) < crowd, soft=1.2)
    ghosts = Lattice.over(view.core, 26, view.key(5), 0.4)
    a = np.float32(7) * (1 + np.float32(0.15) * ghosts.bell(4))
    pale = _draw(view, ghosts, a, a * np.float32(0.8), _anywhere(ghosts), ghosts.u(7) < 0.5, ragged=0.2, soft=5.0)
    faint = np.float32(0.16) * ghosts.u(8)
    h = np.float32(0.1) * np.maximum(1 + np.float32(0.4) * smudge, 0) + np.float32(0.75) * specks.cover
    return h + pale.ink(faint, 0.0, 0.0), np.maximum(e, np.float32(0.02))


# --------------------------------------------------------------------------------------------------------- tumours


@dataclass(frozen=True)
class Carcinoma:
    """What sets a tumour class apart. Lengths in pixels; shares and chances 0 to 1.

    Nuclei: ``cell`` their spacing, ``radius``, ``spread`` of sizes, ``slim`` elongation, ``dark`` ink and ``shades``
    its variation, ``coarse`` chromatin. Lumens: ``lumen`` the chance at each site of a lattice of ``pitch``,
    ``lumen_radius``, ``foci`` the share of neighbourhoods that have any, ``rind`` the depth of epithelium around them
    beyond which stroma begins (0: solid between). ``keratin``: amount. ``walls``: how clearly cell borders show.
    ``gaps``: amount of vacuoles. ``cyto``: haematoxylin and eosin of cytoplasm. ``stroma``: amount of septa.
    """

    cell: int
    radius: float
    spread: float
    slim: float
    dark: float
    shades: float
    coarse: float
    lumen: float
    lumen_radius: float
    foci: float
    keratin: float
    walls: float
    gaps: float
    cyto: tuple[float, float]
    stroma: float
    pitch: int = 66
    rind: float = 0.0


_SECOND = Carcinoma(
    cell=24, radius=7.9, spread=0.17, slim=0.24, dark=0.72, shades=0.16, coarse=0.18, lumen=0.0, lumen_radius=17,
    foci=0.0, keratin=0.0, walls=0.27, gaps=0.06, cyto=(0.165, 0.255), stroma=0.7,
)  # fmt: skip
_THIRD = replace(_SECOND, cell=27, radius=9.7, spread=0.26, slim=0.25, dark=0.74, shades=0.25, coarse=0.28, walls=0.22)

CARCINOMAS = {
    "tumour_a1": replace(
        _SECOND, cell=18, radius=6.0, spread=0.1, slim=0.45, dark=0.68, shades=0.1, coarse=0.12, lumen=0.9,
        lumen_radius=24, foci=1.0, walls=0.1, gaps=0.03, cyto=(0.16, 0.21), pitch=84, rind=29.0,
    ),
    "tumour_a2": replace(_SECOND, lumen=0.41, foci=0.62, walls=0.25, cyto=(0.167, 0.25)),
    "tumour_a3": replace(_THIRD, lumen=0.34, lumen_radius=15, foci=0.45, cyto=(0.18, 0.255)),
    "tumour_b1": replace(
        _SECOND, cell=25, radius=6.8, spread=0.12, slim=0.18, dark=0.66, shades=0.12, coarse=0.12, keratin=0.9,
        walls=0.55, gaps=0.03, cyto=(0.13, 0.32),
    ),
    "tumour_b2": replace(_SECOND, lumen=0.12, lumen_radius=11, foci=0.4, keratin=0.42, walls=0.29, cyto=(0.163, 0.26)),
    "tumour_b3": replace(_THIRD, keratin=0.32, cyto=(0.18, 0.265)),
}  # fmt: skip


def _lumens(view: View, spec: Carcinoma) -> F32:
    """Pixels from the edge of the nearest lumen over the wide view, negative inside, 60 where there is none near.

    Lumens come in foci: a neighbourhood of six by six sites has them or has none, so that whole patches may lack them.
    """
    if spec.lumen <= 0:
        return np.full((view.wide.height, view.wide.width), np.float32(60))
    lattice = Lattice.over(view.wide, spec.pitch, view.key(1), 0.27)
    focus = unit(hashed(lattice.ix // 6, lattice.iy // 6, view.key(2))) < np.float32(spec.foci)
    a = np.float32(spec.lumen_radius) * (np.float32(0.6) + np.float32(0.7) * lattice.u(3))
    b = a * (np.float32(0.5) + np.float32(0.45) * lattice.u(4))
    q, who = lattice.ellipses(a, b, *_anywhere(lattice), focus & (lattice.u(5) < np.float32(spec.lumen)))
    distance = (np.sqrt(q) - 1) * np.sqrt(a * b).ravel()[who]
    distance += np.float32(3) * np.clip(fbm(view.wide, 26, view.key(3), 3), -2, 2)
    return np.minimum(distance, np.float32(60))


def _carcinoma(view: View, spec: Carcinoma) -> Layer:
    grain = np.float32(view.stain.grain)
    # No two fields of one tumour look alike: slow moods move what the class only sets on average.
    mood = [value_noise(view.wide, 260, view.key(40, i)) for i in range(4)]
    core_mood = [view.inner(field) for field in mood]
    lumen = _lumens(view, spec)
    nest = fbm(view.wide, 72, view.key(4), 2) + np.float32(0.65) * mood[0] + np.float32(1.8 - spec.stroma)
    if spec.rind:
        nest = np.minimum(nest, (np.float32(spec.rind) - lumen) * np.float32(0.05))
    septum = 1 - step(view.inner(nest), 0.0, 0.25)

    lattice = Lattice.over(view.core, spec.cell, view.key(5), 0.42)
    size = np.float32(spec.radius) * (1 + np.float32(0.06) * lattice.sample(mood[1], view.wide))
    size *= np.maximum(1 + np.float32(spec.spread) * lattice.bell(3), np.float32(0.5))
    a = np.minimum(size * (1 + np.float32(spec.slim) * lattice.u(5)), np.float32(0.57 * spec.cell))
    b = np.minimum(size * (1 - np.float32(0.6 * spec.slim) * lattice.u(6)), a)
    away = lattice.sample(lumen, view.wide)
    taken = lattice.u(7) < np.float32(0.95 * view.stain.density)
    taken &= (away > (7.5 if spec.rind else 4.0)) & (lattice.sample(nest, view.wide) > 0.05)
    nuclei = _draw(view, lattice, a, b, _polar(view, lattice, lumen, away), taken, ragged=0.06 + 0.2 * spec.spread)
    chromatin = np.float32(spec.coarse) * grain * view.noise(4, 6) + np.float32(0.1) * grain * view.noise(2, 7)
    dark = np.float32(spec.dark) * (1 + np.float32(spec.shades) * lattice.bell(8))
    ink = nuclei.ink(dark, chromatin, 0.1 + 0.8 * spec.coarse)

    first, second = lattice.borders()
    wall = 1 - step(second - first + np.float32(1.2) * view.noise(6, 8), 2.2, 3.0)
    pale = 1 - np.float32(spec.walls) * np.clip(1 + np.float32(0.6) * core_mood[2], 0, 1.7) * wall
    mottle = 1 + np.float32(0.13) * grain * fbm(view.core, 9, view.key(9), 2)
    mottle *= pale
    h = np.float32(spec.cyto[0]) * mottle
    e = np.float32(spec.cyto[1]) * (1 + np.float32(0.14) * core_mood[3]) * mottle
    if spec.keratin > 0:
        horn, lamella = _keratin(view, spec.keratin)
        ink *= 1 - np.float32(0.8) * horn
        h *= 1 - np.float32(0.7) * horn
        e += horn * (np.float32(0.26) + np.float32(0.16) * lamella - e * np.float32(0.3))
    e *= 1 - np.float32(0.55) * nuclei.cover

    h, e = _blend((h + ink, e), septum, _tumour_stroma, view)
    # Some neighbourhoods are overrun by lymphocytes and hardly look like tumour.
    h, e = _blend((h, e), step(view.noise(200, 14), 1.5, 0.8), _infiltrate, view)
    vacuole = step(fbm(view.core, 30, view.key(10), 2), 2.6 - 3.0 * spec.gaps, 0.2) * (1 - nuclei.cover)
    solid = step(view.inner(lumen), 0.0, 2.5) * (1 - vacuole)
    return h * solid, e * solid + np.float32(0.012)


def _polar(view: View, lattice: Lattice, lumen: F32, away: F32) -> tuple[F32, F32]:
    """Directions of nuclei: towards a lumen that is near, any way elsewhere."""
    ux, uy = _anywhere(lattice)
    gx = lattice.sample(lumen, view.wide, 3) - lattice.sample(lumen, view.wide, -3)
    gy = lattice.sample(lumen, view.wide, 0, 3) - lattice.sample(lumen, view.wide, 0, -3)
    length = np.sqrt(gx * gx + gy * gy)
    near = (away < 22) & (length > 0.5)
    length = np.maximum(length, np.float32(0.5))
    return np.where(near, gx / length, ux), np.where(near, gy / length, uy)


def _keratin(view: View, amount: float) -> Layer:
    """Where keratin lies, 0 to 1, and its lamellae, 0 to 1.

    Foci again: the slow part decides whether a neighbourhood keratinises at all. Contours of the same field, taken as
    a triangle wave, are the concentric lamellae of a pearl.
    """
    field = fbm(view.core, 40, view.key(11), 2) * np.float32(0.6) + np.float32(0.8) * view.noise(220, 12)
    phase = field * np.float32(5) + np.float32(0.15) * view.noise(8, 13)
    lamella = np.abs(phase - np.floor(phase) - np.float32(0.5)) * np.float32(2)
    return step(field, 1.9 - 1.5 * amount, 0.35), lamella


def _tumour_stroma(view: View) -> Layer:
    """The septa between nests: fibres and a few lymphocytes."""
    lines = directions(view.core, 120, view.key(30), 0.3)
    fibre = smeared(view.core, lines, 4, view.key(31), reach=14, taps=3)
    e = np.float32(0.3) * np.maximum(1 + np.float32(0.28) * fibre, np.float32(0.05))
    return _round_cells(view, 19, 32, 0.3, 5.6, 0.95) + np.float32(0.03), e


def _infiltrate(view: View) -> Layer:
    """Crowded lymphocytes."""
    h = _round_cells(view, 16, 34, 0.93 * view.stain.density, 6.1, 1.0)
    return h + np.float32(0.08), np.float32(0.16) * np.maximum(1 + np.float32(0.4) * view.noise(9, 36), np.float32(0.1))


# -------------------------------------------------------------------------------------------------------- rendering


def _tumour_layer(name: str) -> Callable[[View], Layer]:
    return lambda view: _carcinoma(view, CARCINOMAS[name])


_LAYERS: tuple[Callable[[View], Layer], ...] = (
    _stroma, _muscle, _fat, _gland, _lymphocytes, _necrosis, *(_tumour_layer(name) for name in TISSUE_CLASSES[6:])
)  # fmt: skip


def _blurred(field: F32, sigma: float) -> F32:
    """Five-tap Gaussian, valid part only: the field loses ``_BLUR`` pixels on every side."""
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in (0, 1, 2)]
    total = taps[0] + 2 * (taps[1] + taps[2])
    w0, w1, w2 = (np.float32(tap / total) for tap in taps)
    rows = w0 * field[2:-2] + w1 * (field[1:-3] + field[3:-1]) + w2 * (field[:-4] + field[4:])
    return w0 * rows[:, 2:-2] + w1 * (rows[:, 1:-3] + rows[:, 3:-1]) + w2 * (rows[:, :-4] + rows[:, 4:])


def _layer(region: Region, number: int, stain: Stain, seed: int) -> Layer:
    view = View(region.grow(_BLUR), region.grow(_BLUR + _MARGIN), key(seed, number + 1), stain)
    h, e = _LAYERS[number](view)
    return _blurred(h, stain.blur), _blurred(e, stain.blur)


def _exposed(h: F32, e: F32, region: Region, stain: Stain, seed: int) -> NDArray[np.uint8]:
    """Densities to pixels through a table of 10 ** -OD, and the sensor's noise: uint8 ``[height, width, 3]``."""
    table = np.power(10.0, -np.linspace(0, _OD_MAX, _LEVELS)).astype(np.float32)
    bits = grid_hash(region.x0, region.y0, region.width, region.height, key(seed, 0)).view(np.uint8)
    dither = bits.reshape(region.height, region.width, 4)
    pixels = np.empty((region.height, region.width, 3), np.uint8)
    to_level = (_LEVELS - 1) / _OD_MAX
    for channel in range(3):
        density = h * np.float32(stain.haematoxylin[channel] * stain.strengths[0] * to_level)
        density += e * np.float32(stain.eosin[channel] * stain.strengths[1] * to_level)
        np.clip(density, 0, _LEVELS - 1, out=density)
        value = table[density.astype(np.intp)]
        value *= np.float32(stain.background[channel])
        # A byte is uniform with sd 73.9; the sensor's sd follows from that.
        value += (dither[:, :, channel] - np.float32(127.5)) * np.float32(stain.noise / 73.9) + np.float32(0.5)
        pixels[:, :, channel] = np.clip(value, 0, 255)
    return pixels


def render(
    x0: int, y0: int, width: int, height: int, classes: int | NDArray[np.uint8], *, stain: Stain, seed: int
) -> NDArray[np.uint8]:
    """Pixels of a rectangle of the world, uint8 ``[height, width, 3]``.

    ``classes`` is one class index for the whole rectangle or a uint8 map ``[height, width]`` with ``GLASS`` where
    there is no tissue. Raises InputError for an empty rectangle, a map of another shape or an unknown class.
    """
    if width < 1 or height < 1:
        raise InputError(f"render: width and height must be at least 1, got {width} x {height}")
    chosen = np.asarray(classes)
    if chosen.ndim and chosen.shape != (height, width):
        raise InputError(f"render: classes must have shape ({height}, {width}), got {chosen.shape}")
    present = np.unique(chosen).tolist()
    unknown = [value for value in present if value != GLASS and not 0 <= value < len(TISSUE_CLASSES)]
    if unknown:
        raise InputError(f"render: classes must be below {len(TISSUE_CLASSES)} or {GLASS} (glass), got {unknown[0]}")
    region = Region(int(x0), int(y0), int(width), int(height))
    h = np.zeros((height, width), np.float32)
    e = np.zeros((height, width), np.float32)
    for number in present:
        if number == GLASS:
            continue
        if chosen.ndim == 0:
            h, e = _layer(region, number, stain, seed)
            break
        mask = chosen == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left = int(rows[0]), int(columns[0])
        bottom, right = int(rows[-1]) + 1, int(columns[-1]) + 1
        box = np.s_[top:bottom, left:right]
        part = Region(region.x0 + left, region.y0 + top, right - left, bottom - top)
        layer_h, layer_e = _layer(part, number, stain, seed)
        np.copyto(h[box], layer_h, where=mask[box])
        np.copyto(e[box], layer_e, where=mask[box])
    return _exposed(h, e, region, stain, seed)
