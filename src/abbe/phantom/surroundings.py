"""What lies around a bank patch: as on a slide, many patches lie at the ragged border of another tissue or of glass."""

from __future__ import annotations

import numpy as np

from abbe.phantom.classes import PHANTOM
from abbe.phantom.layout import Layout, pixel_classes
from abbe.phantom.render.tissue import GLASS

PURITY = 0.9
"""smallest share of a bank patch's pixels that are of its class"""
_AT_BORDER = 0.6  # share of patches that have another tissue or glass beside them
_GLASS = 0.3  # share of these whose neighbour is glass


def surroundings(rng: np.random.Generator, cls: int, patch_size: int, seed: int) -> tuple[Layout, float]:
    """A raster of three by three patches around one of class ``cls``, and the share of its pixels that are of ``cls``.

    Beside it lies more of the same, or on one side glass or one other tissue. That is never a tumour: a patch that is
    no evidence holds none, and a slide has one tumour at most. seed: of the border (see ``pixel_classes``).
    """
    if rng.random() >= _AT_BORDER:
        return Layout(np.full((3, 3), cls, np.uint8)), 1.0
    others = [other for other in PHANTOM.rest if other != cls]
    beside = GLASS if rng.random() < _GLASS else int(rng.choice(others))
    y, x = np.mgrid[-1:2, -1:2]
    while True:
        angle = rng.uniform(0, 2 * np.pi)
        beyond = x * np.cos(angle) + y * np.sin(angle) > rng.uniform(0.5, 1.1)
        layout = Layout(np.where(beyond, beside, cls).astype(np.uint8))
        inside = pixel_classes(layout, patch_size, patch_size, patch_size, patch_size, patch_size, seed)
        purity = float((inside == cls).mean())
        if purity >= PURITY:
            return layout, purity
