"""Stains: how a laboratory and its scanner show tissue and store it, and how sites and their settings differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from abbe.errors import InputError

Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]
_QUALITIES = ((60, 71), (72, 83), (84, 95))  # each setting of a site has one of these ranges, in random order


@dataclass(frozen=True)
class Stain:
    """How a laboratory and its scanner show tissue and store it.

    haematoxylin, eosin: unit optical density vectors (R, G, B).  strengths: their multipliers.  background: RGB of
    bare glass.  blur: sigma in pixels.  noise: sd of the sensor in grey levels.  density: multiplier of nucleus counts.
    grain: multiplier of chromatin and cytoplasm texture.  quality: of the JPEG, 1 to 100.  subsampling: of its chroma.
    """

    haematoxylin: tuple[float, float, float] = (0.61, 0.72, 0.33)
    eosin: tuple[float, float, float] = (0.12, 0.90, 0.42)
    strengths: tuple[float, float] = (1.0, 0.92)
    background: tuple[float, float, float] = (243.0, 242.0, 244.0)
    blur: float = 0.7
    noise: float = 1.5
    density: float = 1.0
    grain: float = 1.0
    quality: int = 85
    subsampling: Subsampling = "4:2:0"


def _unit_vector(vector: np.ndarray) -> tuple[float, float, float]:
    r, g, b = (vector / np.linalg.norm(vector)).tolist()
    return (round(r, 6), round(g, 6), round(b, 6))


def site_stain(site: int, setting: int, seed: int) -> Stain:
    """The stain of a site in one of its three settings.

    Hue, glass and the density of nuclei are those of the site. Each setting has its own strengths, optics (blur, noise)
    and JPEG: of its three settings one has a high quality, one a medium and one a low one, and one each of the three
    subsamplings.

    Raises InputError if ``site`` is negative or ``setting`` is not 0, 1 or 2.
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
    density, grain = rng.uniform((0.9, 0.85), (1.08, 1.15))
    glass = np.array(base.background) + rng.uniform(-3, 3, 3)
    low, high = _QUALITIES[rng.permutation(3)[setting]]
    subsampling: Subsampling = get_args(Subsampling)[rng.permutation(3)[setting]]
    rng = np.random.default_rng([seed & 0xFFFFFFFF, site, 11, setting])
    strong *= np.array([(1.0, 1.0), (1.12, 0.9), (0.88, 1.14)][setting]) * rng.uniform(0.97, 1.03, 2)
    blur, noise = rng.uniform((0.55, 0.8), (0.95, 2.5))
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
        quality=int(rng.integers(low, high, endpoint=True)),
        subsampling=subsampling,
    )
