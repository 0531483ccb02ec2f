"""What a model kept of a slide, drawn on the slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from abbe.errors import BagError
from abbe.slides.slide import read_regions, read_thumbnail
from abbe.store.tokens import SlideTokens
from abbe.view.figure import Figure
from abbe.view.gallery import gallery_figure, gallery_rows
from abbe.view.overlay import slot_figure, weight_figure
from abbe.view.painting import Thumbnail

GALLERY_SIDE = 128  # pixels of a patch in the gallery


def draw(slide: Path, tokens: SlideTokens, *, side: int = 1600) -> dict[str, Figure]:
    """{"slots", "weight", "gallery"}; no "weight" if the pooling does not report it.

    Raises BagError for tokens of another slide, SlideError if the slide cannot be read.
    """
    thumbnail = thumbnail_for(slide, tokens, side=side)
    return {
        "slots": slot_figure(thumbnail, tokens),
        **({"weight": weight_figure(thumbnail, tokens)} if tokens.attended else {}),
        "gallery": gallery(slide, tokens),
    }


def gallery(slide: Path, tokens: SlideTokens) -> Figure:
    """Patches of the largest tokens, read from the slide."""
    rows = gallery_rows(tokens)
    # One child process for all rows: starting it takes longer than reading the patches.
    wanted = np.concatenate([numbers for _, numbers in rows])
    patches = read_regions(slide, tokens.coords.numpy()[wanted], tokens.patch_size_level0, side=GALLERY_SIDE)
    images = np.split(patches, np.cumsum([len(numbers) for _, numbers in rows])[:-1])
    return gallery_figure(tokens, rows, images)


def thumbnail_for(slide: Path, tokens: SlideTokens, *, side: int = 1600) -> Thumbnail:
    """The slide's thumbnail. Raises BagError if its size is not that of the slide the tokens were made from."""
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
