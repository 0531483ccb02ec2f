"""mpp and size of slides, for feature files that do not state them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from abbe.errors import BagError, SlideError
from abbe.slides.find import FoundSlide, find_slides
from abbe.slides.slide import read_slide
from abbe.slides.tiling import slide_mpp
from abbe.store.convert import Facts

_TIME_LIMIT = 60.0  # seconds per slide


def slide_facts(paths: Sequence[Path]) -> Facts:
    """The function slide_id → (mpp or None, level-0 size) of the slides named or found; it opens a slide when called.

    The function raises BagError for a slide that is not among them or cannot be opened.
    """
    return partial(_facts, {slide.slide_id: slide for slide in find_slides(paths)})


def _facts(slides: Mapping[str, FoundSlide], slide_id: str) -> tuple[float | None, tuple[int, int] | None]:
    if slide_id not in slides:
        raise BagError(f"--slide: no slide called {slide_id!r} among the {len(slides)} found")
    slide = slides[slide_id]
    if slide.problem:
        raise BagError(f"--slide {slide.path}: {slide.problem}")
    try:
        with read_slide("describe", slide.path, time_limit=_TIME_LIMIT) as frames:
            about = next(frames).header
    except SlideError as error:
        reason = f"{error.stage}: {error.reason}"
        if error.stage == "time limit":
            reason = f"its size could not be read within {_TIME_LIMIT:g} s; leave it out, and use --override-mpp"
        raise BagError(f"--slide {slide.path}: {reason}") from error
    width, height = about["levels"][0]
    try:
        mpp = slide_mpp(about["mpp_x"], about["mpp_y"], None)
    except SlideError:
        mpp = None  # a layout that needs it raises an error that names the option
    return mpp, (width, height)
