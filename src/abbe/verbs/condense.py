"""`abbe condense`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from abbe.console import result
from abbe.slides.settings import EncodeSettings


@dataclass(frozen=True)
class CondenseSlide:
    """Condense one slide with a trained model, and save its tokens and the assignment of patches to them.

    Example:
      abbe condense out/20x_256px_0px_overlap/features_texture/slide.h5 --model run/model --out tokens.safetensors
      abbe condense slide.svs --model run/model --out tokens.safetensors
    """

    source: tyro.conf.Positional[Path]
    """a feature file, or a slide, which is encoded first (into a folder beside --out)"""
    model: str
    """model folder or hub id"""
    out: Path
    """output file of the tokens (.safetensors)"""
    mpp: float = 0.5
    """for a slide: microns per pixel of its patches"""
    patch_size: int = 256
    """for a slide: side of a patch in pixels at that mpp"""
    override_mpp: float | None = None
    """for a slide that does not state it: microns per pixel at level 0"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.verbs.steps import condense_source

        settings = EncodeSettings(mpp=self.mpp, patch_size=self.patch_size, override_mpp=self.override_mpp)
        condensed = condense_source(self.source, self.model, self.out, settings)
        about, used, n = condensed.about, int(condensed.mask.sum()), len(condensed.coords)
        shares = ", ".join(f"{name} {share:.3f}" for name, share in about["probabilities"].items())
        text = f"{about['slide_id']}: {n} patches → {used} tokens; {shares}; written to {self.out}"
        result(text, {**about, "patches": n, "tokens": used, "out": str(self.out)}, json_output=self.json)
        return 0
