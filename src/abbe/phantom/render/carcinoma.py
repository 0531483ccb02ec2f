"""The tumours: one layer for all six classes, and the parameters of each class.

Subtype ``a`` forms glands, subtype ``b`` grows in sheets and keratinises; with rising grade both lose these marks and
gain pleomorphism. The marks of a2 and b2 come in foci and are often absent from a single patch, so that a single patch
shows its subtype in most cases only. That difficulty was fixed before anything was trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from abbe.phantom.render.lattice import Lattice
from abbe.phantom.render.layers import Layer, View, blend, draw, random_directions, round_cells
from abbe.phantom.render.noise import F32, directions, fbm, hashed, smeared, step, unit, value_noise


@dataclass(frozen=True)
class Carcinoma:
    """Parameters of a tumour class. Lengths in pixels; shares and probabilities 0 to 1.

    Nuclei: ``cell`` spacing, ``radius``, ``spread`` of sizes, ``slim`` elongation, ``dark`` haematoxylin and ``shades``
    its variation, ``coarse`` chromatin. Lumens: ``lumen`` probability at each site of a lattice of ``pitch``,
    ``lumen_radius``, ``foci`` share of neighbourhoods that have any, ``rind`` depth of the epithelium around them
    before stroma begins (0: no stroma). ``keratin``: amount. ``walls``: contrast of cell borders. ``gaps``: amount of
    vacuoles. ``cyto``: haematoxylin and eosin of cytoplasm. ``stroma``: amount of septa.
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
    """Distance in pixels to the edge of the nearest lumen over the wide view, negative inside, at most 60.

    Lumens come in foci: a neighbourhood of six by six sites may have none, so that whole patches lack them.
    """
    if spec.lumen <= 0:
        return np.full((view.wide.height, view.wide.width), np.float32(60))
    lattice = Lattice.over(view.wide, spec.pitch, view.key(1), 0.27)
    focus = unit(hashed(lattice.ix // 6, lattice.iy // 6, view.key(2))) < spec.foci
    a = spec.lumen_radius * (0.6 + 0.7 * lattice.u(3))
    b = a * (0.5 + 0.45 * lattice.u(4))
    q, who = lattice.ellipses(a, b, *random_directions(lattice), focus & (lattice.u(5) < spec.lumen))
    distance = (np.sqrt(q) - 1) * np.sqrt(a * b).ravel()[who]
    distance += 3 * np.clip(fbm(view.wide, 26, view.key(3), 3), -2, 2)
    return np.minimum(distance, 60)


def carcinoma(view: View, spec: Carcinoma) -> Layer:
    """Nests of tumour cells with septa of stroma between them, and with lumens or keratin by class."""
    grain = np.float32(view.stain.grain)
    # Slow noise varies what the class sets only on average, so that no two fields of a tumour look alike.
    slow = [value_noise(view.wide, 260, view.key(40, i)) for i in range(4)]
    core_slow = [view.inner(field) for field in slow]
    lumen = _lumens(view, spec)
    nest = fbm(view.wide, 72, view.key(4), 2) + 0.65 * slow[0] + np.float32(1.8 - spec.stroma)
    if spec.rind:
        nest = np.minimum(nest, (spec.rind - lumen) * 0.05)
    septum = 1 - step(view.inner(nest), 0.0, 0.25)

    lattice = Lattice.over(view.core, spec.cell, view.key(5), 0.42)
    size = spec.radius * (1 + 0.06 * lattice.sample(slow[1], view.wide))
    size *= np.maximum(1 + spec.spread * lattice.bell(3), 0.5)
    a = np.minimum(size * (1 + spec.slim * lattice.u(5)), 0.57 * spec.cell)
    b = np.minimum(size * (1 - 0.6 * spec.slim * lattice.u(6)), a)
    away = lattice.sample(lumen, view.wide)
    taken = lattice.u(7) < 0.95 * view.stain.density
    taken &= (away > (7.5 if spec.rind else 4.0)) & (lattice.sample(nest, view.wide) > 0.05)
    nuclei = draw(
        view, lattice, a, b, _nuclear_directions(view, lattice, lumen, away), taken, ragged=0.06 + 0.2 * spec.spread
    )
    chromatin = spec.coarse * grain * view.noise(4, 6) + 0.1 * grain * view.noise(2, 7)
    dark = spec.dark * (1 + spec.shades * lattice.bell(8))
    ink = nuclei.ink(dark, chromatin, 0.1 + 0.8 * spec.coarse)

    first, second = lattice.borders()
    wall = 1 - step(second - first + 1.2 * view.noise(6, 8), 2.2, 3.0)
    pale = 1 - spec.walls * np.clip(1 + 0.6 * core_slow[2], 0, 1.7) * wall
    mottle = 1 + 0.13 * grain * fbm(view.core, 9, view.key(9), 2)
    mottle *= pale
    h = spec.cyto[0] * mottle
    e = spec.cyto[1] * (1 + 0.14 * core_slow[3]) * mottle
    if spec.keratin > 0:
        horn, lamella = _keratin(view, spec.keratin)
        ink *= 1 - 0.8 * horn
        h *= 1 - 0.7 * horn
        e += horn * (0.26 + 0.16 * lamella - e * 0.3)
    e *= 1 - 0.55 * nuclei.cover

    h, e = blend((h + ink, e), septum, _tumour_stroma, view)
    # In some neighbourhoods lymphocytes cover the tumour almost completely.
    h, e = blend((h, e), step(view.noise(200, 14), 1.5, 0.8), _infiltrate, view)
    vacuole = step(fbm(view.core, 30, view.key(10), 2), 2.6 - 3.0 * spec.gaps, 0.2) * (1 - nuclei.cover)
    solid = step(view.inner(lumen), 0.0, 2.5) * (1 - vacuole)
    return h * solid, e * solid + 0.012


def _nuclear_directions(view: View, lattice: Lattice, lumen: F32, away: F32) -> tuple[F32, F32]:
    """Directions of nuclei: towards a lumen nearby, otherwise random."""
    ux, uy = random_directions(lattice)
    gx = lattice.sample(lumen, view.wide, 3) - lattice.sample(lumen, view.wide, -3)
    gy = lattice.sample(lumen, view.wide, 0, 3) - lattice.sample(lumen, view.wide, 0, -3)
    length = np.sqrt(gx * gx + gy * gy)
    near = (away < 22) & (length > 0.5)
    length = np.maximum(length, 0.5)
    return np.where(near, gx / length, ux), np.where(near, gy / length, uy)


def _keratin(view: View, amount: float) -> Layer:
    """Amount of keratin and its lamellae, both 0 to 1.

    The slow part of the noise decides whether a neighbourhood keratinises at all. A triangle wave of the same field
    gives its contours, the concentric lamellae of a pearl.
    """
    field = fbm(view.core, 40, view.key(11), 2) * 0.6 + 0.8 * view.noise(220, 12)
    phase = field * 5 + 0.15 * view.noise(8, 13)
    lamella = np.abs(phase - np.floor(phase) - 0.5) * 2
    return step(field, 1.9 - 1.5 * amount, 0.35), lamella


def _tumour_stroma(view: View) -> Layer:
    """The septa between nests: fibres and a few lymphocytes."""
    lines = directions(view.core, 120, view.key(30), 0.3)
    fibre = smeared(view.core, lines, 4, view.key(31), reach=14, taps=3)
    e = 0.3 * np.maximum(1 + 0.28 * fibre, 0.05)
    return round_cells(view, 19, 32, 0.3, 5.6, 0.95) + 0.03, e


def _infiltrate(view: View) -> Layer:
    """Crowded lymphocytes."""
    h = round_cells(view, 16, 34, 0.93 * view.stain.density, 6.1, 1.0)
    return h + 0.08, 0.16 * np.maximum(1 + 0.4 * view.noise(9, 36), 0.1)
