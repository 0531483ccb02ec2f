"""`abbe export heatmap`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from abbe.console import result, say
from abbe.errors import ConfigError
from abbe.slides.settings import ModelPatches


@dataclass(frozen=True, kw_only=True)
class ExportHeatmap(ModelPatches):
    """Draw what a model kept: patches by slot, patches by weight, and the most typical patches of each slot.

    Example:
      abbe export heatmap slide.svs --tokens tokens.safetensors --out pictures
      abbe export heatmap slide.svs --model run/model --out pictures

    Writes <slide>_slots.png, <slide>_weight.png and <slide>_gallery.png. The slide's label and macro images are not
    read.
    """

    slide: tyro.conf.Positional[Path]
    """the slide to draw on"""
    out: Path
    """folder for the pictures"""
    tokens: Path | None = None
    """tokens of this slide, written by `abbe condense`"""
    model: str | None = None
    """model folder or hub id, to condense the slide now"""
    features: Path | None = None
    """with --model: feature file of the slide (default: encode the slide)"""
    side: int = 1600
    """approximate length of the thumbnail's longer side in pixels"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.store.commit import write_bytes
        from abbe.store.tokens import read_tokens
        from abbe.verbs.steps import condense_source
        from abbe.view.figure import png
        from abbe.view.heatmap import draw

        if (self.tokens is None) == (self.model is None):
            raise ConfigError(
                "give exactly one of --tokens (of this slide) and --model (which condenses the slide now)"
            )
        if self.tokens is not None:
            tokens = read_tokens(self.tokens)
        else:
            assert self.model is not None
            out = self.out / f"{self.slide.stem}.safetensors"
            tokens = condense_source(self.features or self.slide, self.model, out, self)
        paths = []
        if not tokens.attended:
            say("no picture of weights: the pooling of this model has no weight per token")
        for name, figure in draw(self.slide, tokens, side=self.side).items():
            paths.append(self.out / f"{tokens.about['slide_id']}_{name}.png")
            write_bytes(paths[-1], png(figure), format="picture")
        result("\n".join(map(str, paths)), [str(path) for path in paths], json_output=self.json)
        return 0
