"""Random banks instead of rendered ones, for tests of the use of their rows."""

from __future__ import annotations

import numpy as np

from abbe.phantom.bank import EncoderVersion, PatchBank, per_cell
from abbe.phantom.render.tissue import TISSUE_CLASSES
from abbe.phantom.settings import BankPlan
from abbe.slides.patch_encoders.texture import TextureEncoder

BANK = BankPlan(sites=2, normal=(3, 2, 2), tumour=(4, 2, 3))


def random_bank(*, clear: float = 10.0, plan: BankPlan = BANK) -> PatchBank:
    """A bank of normal rows [M, 16] whose classes lie `clear` apart."""
    cells = [
        (cls, site, setting, split)
        for cls in range(len(TISSUE_CLASSES))
        for site in range(plan.sites)
        for setting in range(3)
        for split in range(3)
        for _ in range(per_cell(plan, cls)[split])
    ]
    cls, site, setting, split = np.array(cells).T
    features = np.random.default_rng(0).standard_normal((len(cls), 16)).astype(np.float32)
    features[np.arange(len(cls)), cls] += clear
    purity = np.linspace(0.9, 1, len(cls), dtype=np.float32)
    version = EncoderVersion("texture", TextureEncoder.version)
    return PatchBank(plan, version, features, cls, site, setting, split, purity=purity)
