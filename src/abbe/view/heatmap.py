"""`abbe export heatmap`: pictures of what a model kept of a slide, on the slide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from abbe.console import result, say
from abbe.errors import BagError, ConfigError
from abbe.models.condense import SlideTokens, condense_source, read_tokens
from abbe.slides.slide import read_regions, read_thumbnail
from abbe.store.commit import write_bytes
from abbe.view.overlay import Thumbnail, gallery_picture, gallery_rows, slot_picture, weight_picture

GALLERY_SIDE = 128  # pixels of a patch in the gallery


@dataclass(frozen=True)
class ExportHeatmap:
    """Draw what a model kept: patches by slot, patches by weight, and the most typical patches of each slot.

    Example:
      abbe export heatmap slide.svs --tokens tokens.safetensors --out pictures
      abbe export heatmap slide.svs --model run/model --out pictures

    Writes <slide>_slots.png, <slide>_weight.png and <slide>_gallery.png. The slide's label and macro image are never
    read.
    """

    slide: tyro.conf.Positional[Path]
    """the slide to draw on"""
    out: Path
    """folder for the pictures"""
    tokens: Path | None = None
    """tokens that `abbe condense` wrote for this slide"""
    model: str | None = None
    """model folder or hub id, to condense the slide now"""
    features: Path | None = None
    """feature file of the slide, with --model (otherwise the slide is encoded)"""
    override_mpp: float | None = None
    """microns a pixel at level 0, for a slide that does not say"""
    side: int = 1600
    """pixels of the thumbnail's longer side, about"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        if (self.tokens is None) == (self.model is None):
            raise ConfigError("give --tokens, or --model to condense the slide now; one of the two")
        if self.tokens is not None:
            tokens = read_tokens(self.tokens)
        else:
            assert self.model is not None
            out = self.out / f"{self.slide.stem}.safetensors"
            tokens = condense_source(self.features or self.slide, self.model, out, override_mpp=self.override_mpp)
        paths = []
        if not tokens.attended:
            say("no picture of weights: this model's pooling does not say how much it read of each token")
        for name, png in draw(self.slide, tokens, side=self.side).items():
            paths.append(self.out / f"{tokens.about['slide_id']}_{name}.png")
            write_bytes(paths[-1], png, format="picture")
        result("\n".join(map(str, paths)), [str(path) for path in paths], json_output=self.json)
        return 0


def draw(slide: Path, tokens: SlideTokens, *, side: int = 1600) -> dict[str, bytes]:
    """{"slots", "weight", "gallery"} → PNG; no "weight" where the pooling does not say what it read.

    Raises BagError for tokens of another slide, SlideError for the slide.
    """
    thumbnail = thumbnail_for(slide, tokens, side=side)
    rows = gallery_rows(tokens)
    # One child process for all rows: starting one costs more than reading the patches.
    wanted = np.concatenate([numbers for _, numbers in rows])
    patches = read_regions(slide, tokens.coords.numpy()[wanted], tokens.patch_size_level0, side=GALLERY_SIDE)
    images = np.split(patches, np.cumsum([len(numbers) for _, numbers in rows])[:-1])
    return {
        "slots": slot_picture(thumbnail, tokens),
        **({"weight": weight_picture(thumbnail, tokens)} if tokens.attended else {}),
        "gallery": gallery_picture(tokens, rows, images),
    }


def thumbnail_for(slide: Path, tokens: SlideTokens, *, side: int = 1600) -> Thumbnail:
    """The slide's thumbnail, checked against the size of the slide the tokens were made from."""
    pixels, downsample = read_thumbnail(slide, side=side)
    stated = tokens.about.get("level0_size")
    if stated is not None:
        height, width = pixels.shape[:2]
        for found, expected in ((width * downsample, stated[0]), (height * downsample, stated[1])):
            if abs(found - expected) > 2 * downsample:
                raise BagError(
                    f"{slide}: about {width * downsample:.0f} × {height * downsample:.0f} level-0 pixels; these tokens "
                    f"are of a slide of {stated[0]} × {stated[1]}"
                )
    return Thumbnail(pixels, downsample, tokens.about.get("mpp"))
