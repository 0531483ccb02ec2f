"""The layers of tissue without tumour: stroma, muscle, fat, glands, lymphocytes and necrosis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from abbe.phantom.render.lattice import Lattice, warped_cells
from abbe.phantom.render.layers import Layer, View, blend, draw, random_directions, round_cells
from abbe.phantom.render.noise import F32, directions, fbm, hashed, smeared, step, turns, unit, value_noise


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
    """Fibres along a smooth field of directions, clefts between bundles, and nuclei along the fibres."""
    lines = directions(view.wide, turn, view.key(1), ripple)
    along = view.inner(lines[0]), view.inner(lines[1])
    fine = smeared(view.core, along, grain, view.key(2), reach=reach, taps=4)
    bundle = smeared(view.core, along, 3 * grain, view.key(3), reach=2 * reach, taps=4)
    patchy = fbm(view.core, 96, view.key(4), 2)
    e = np.float32(eosin) * (1 + np.float32(contrast) * (fine * 0.6 + bundle + 0.5 * patchy))
    e *= 1 - 0.85 * step(bundle + 0.35 * fine + 0.6 * patchy, cleft, -0.7)
    np.maximum(e, 0.01, out=e)
    lattice = Lattice.over(view.core, cell, view.key(5), 0.42)
    wobble = 0.25 * lattice.bell(13)
    ux, uy = lattice.sample(lines[0], view.wide), lattice.sample(lines[1], view.wide)
    ux, uy = ux - wobble * uy, uy + wobble * ux
    length: F32 = np.sqrt(ux * ux + uy * uy)
    a = half_axes[0] * (1 + 0.2 * lattice.bell(4))
    b = half_axes[1] * (1 + 0.2 * lattice.bell(6))
    taken = lattice.u(8) < chance * view.stain.density
    nuclei = draw(view, lattice, a, b, (ux / length, uy / length), taken, ragged=0.1, soft=1.4)
    dark = 0.8 * (1 + 0.2 * lattice.bell(9))
    h = 0.1 * e + nuclei.ink(dark, 0.15 * view.stain.grain * view.noise(3, 6), 0.15)
    return h, e * (1 - 0.6 * nuclei.cover)


def stroma(view: View) -> Layer:
    """Wavy collagen with clefts, spindle-shaped nuclei and a few lymphocytes."""
    h, e = _fibrous(
        view, turn=150, ripple=0.35, grain=4, reach=18, eosin=0.31, contrast=0.2, cleft=-1.75, cell=36,
        half_axes=(13.0, 3.0), chance=0.5,
    )  # fmt: skip
    return h + round_cells(view, 40, 20, 0.1, 6.0, 0.95), e


def muscle(view: View) -> Layer:
    """Dense straight fibres with long nuclei between them."""
    return _fibrous(
        view, turn=360, ripple=0.06, grain=6, reach=30, eosin=0.45, contrast=0.13, cleft=-1.95, cell=38,
        half_axes=(14.0, 3.6), chance=0.42,
    )  # fmt: skip


def fat(view: View) -> Layer:
    """Empty round cells with thin walls, and flat nuclei where cells meet."""
    warp = (
        9 * value_noise(view.wide, 48, view.key(1)),
        9 * value_noise(view.wide, 48, view.key(2)),
    )
    cells = warped_cells(view.wide, warp, 104, view.key(3), 0.34)
    gap = cells.f2 - cells.f1
    wall = 2.6 + 1.0 * value_noise(view.wide, 20, view.key(4))
    membrane = view.inner(1 - step(gap, wall, 2.5))
    corner = step(view.inner(cells.f1), 62.0, 10.0) * (1 - step(view.inner(gap), 9.0, 8.0))
    e = 0.3 * np.maximum(membrane, 0.6 * corner) + 0.012
    lattice = Lattice.over(view.core, 30, view.key(5), 0.4)
    near = lattice.sample(gap, view.wide) < 6
    a = 7 * (1 + 0.2 * lattice.bell(4))
    nuclei = draw(view, lattice, a, a * 0.45, random_directions(lattice), near & (lattice.u(6) < 0.45))
    return nuclei.ink(0.75 + 0 * a, 0.0, 0.0) + 0.12 * e, e


def gland(view: View) -> Layer:
    """Round glands in stroma: clear lumen, tall epithelium with a basal ring of regular nuclei."""
    warp = 8 * view.noise(56, 1), 8 * view.noise(56, 2)
    cells = warped_cells(view.core, warp, 128, view.key(3), 0.22)
    wall = 46 + 14 * unit(cells.h, 3)
    depth = np.minimum(wall - cells.f1, (cells.f2 - cells.f1) * 0.5 - 6)
    height = 24 + 6 * unit(cells.h, 4)
    inside = step(depth, 0.0, 2.0)
    lumen = step(depth + 2.2 * view.noise(12, 4), height, 3.0)
    # Nuclei in polar coordinates: the angle around the gland, cut into equal cells, and the depth of epithelium.
    count = np.rint(wall * (2 * math.pi / 12.5))
    around = turns(cells.dx, cells.dy) * count
    cell = np.minimum(np.floor(around), count - 1)
    h_cell = hashed(cell.astype(np.int64), cells.h.astype(np.int64), view.key(5))
    pitch = 2 * math.pi * cells.f1 / count
    tangent = (around - cell - 0.5 + 0.24 * (unit(h_cell, 1) - 0.5)) * pitch
    radial = depth - 8.5 - 5 * (unit(h_cell, 2) - 0.5)
    size = 4.6 + unit(h_cell, 3)
    radius = np.sqrt(tangent * tangent * 1.25 + radial * radial * 0.55) / size
    radius *= 1 + 0.08 * view.noise(6, 6)
    cover = inside * np.clip((1 - radius) * size * 0.7 + 0.5, 0, 1)
    shade = 0.66 + 0.16 * unit(h_cell, 4)
    chromatin = 0.14 * view.stain.grain * view.noise(3, 7)
    ink = cover * shade * (0.85 + 0.15 * step(radius, 0.8, 0.4) + chromatin)
    # Some cells have a pale drop of mucin between nucleus and lumen.
    mucin = step(unit(h_cell, 5), 0.55, 0.05) * step(depth, 14.0, 4.0) * (1 - step(np.abs(tangent), pitch * 0.42, 2.0))
    body = inside * (1 - lumen) * (1 - 0.6 * mucin)
    texture = 1 + 0.1 * view.noise(5, 8)
    h_stroma, e_stroma = stroma(replace(view, salt=view.key(9)))
    outside = 1 - inside
    h = outside * h_stroma + body * 0.12 * texture + ink
    e = outside * e_stroma + body * 0.2 * texture * (1 - 0.6 * cover)
    e += lumen * inside * 0.015
    return h, e


def lymphocytes(view: View) -> Layer:
    """Crowded small dark nuclei, in places the larger and paler cells of a germinal centre."""
    crowd = float(0.93 * view.stain.density)
    h = np.maximum(round_cells(view, 16, 1, crowd, 6.1, 1.0), round_cells(view, 21, 3, 0.3, 6.6, 0.85))
    web = np.maximum(1 + 0.4 * fbm(view.core, 12, view.key(5), 2), 0.1)
    centre = step(view.noise(240, 6) + 0.5 * view.noise(50, 7), 1.25, 0.5)

    def germinal(view: View) -> Layer:
        return round_cells(view, 19, 8, 0.95, 7.0, 0.72), 0.22 * web

    h, e = blend((h, 0.16 * web), centre, germinal, view)
    return h + 0.08, e


def necrosis(view: View) -> Layer:
    """Smudgy pink debris with nuclear dust and the pale ghosts of nuclei."""
    smudge, clot = fbm(view.core, 40, view.key(1), 4), fbm(view.core, 6, view.key(2), 2)
    e = 0.4 * (1 + 0.16 * smudge + 0.2 * view.stain.grain * clot)
    e *= 1 - 0.8 * step(smudge + 0.5 * clot, -1.7, -0.5)
    cluster = value_noise(view.wide, 44, view.key(3))
    dust = Lattice.over(view.core, 10, view.key(4), 0.45)
    crowd = 0.16 + 0.14 * dust.sample(cluster, view.wide)
    a = 0.9 + 2.0 * dust.u(4) * dust.u(5)
    specks = draw(view, dust, a, a * 0.8, random_directions(dust), dust.u(6) < crowd, soft=1.2)
    ghosts = Lattice.over(view.core, 26, view.key(5), 0.4)
    a = 7 * (1 + 0.15 * ghosts.bell(4))
    pale = draw(view, ghosts, a, a * 0.8, random_directions(ghosts), ghosts.u(7) < 0.5, ragged=0.2, soft=5.0)
    faint = 0.16 * ghosts.u(8)
    h = 0.1 * np.maximum(1 + 0.4 * smudge, 0) + 0.75 * specks.cover
    return h + pale.ink(faint, 0.0, 0.0), np.maximum(e, 0.02)


NORMAL: dict[str, Callable[[View], Layer]] = {
    "stroma": stroma,
    "muscle": muscle,
    "fat": fat,
    "gland": gland,
    "lymphocytes": lymphocytes,
    "necrosis": necrosis,
}
