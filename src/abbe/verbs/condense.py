"""`abbe condense`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from abbe.console import result
from abbe.slides.settings import ModelPatches


@dataclass(frozen=True, kw_only=True)
class CondenseSlide(ModelPatches):
    """Condense one slide with a trained model, and save its tokens and the assignment of patches to them.

    A slide is encoded as the model's training slides were: the same encoder, mpp, patch size and overlap.

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
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.verbs.steps import condense_source

        condensed = condense_source(self.source, self.model, self.out, self)
        about, used, n = condensed.about, int(condensed.mask.sum()), len(condensed.coords)
        shares = ", ".join(f"{name} {share:.3f}" for name, share in about["probabilities"].items())
        text = f"{about['slide_id']}: {n} patches → {used} tokens; {shares}; written to {self.out}"
        result(text, {**about, "patches": n, "tokens": used, "out": str(self.out)}, json_output=self.json)
        return 0
