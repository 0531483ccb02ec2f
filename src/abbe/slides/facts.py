"""What slides at hand say of themselves, for feature files that do not say it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from abbe.errors import BagError, SlideError
from abbe.slides.find import FoundSlide, find_slides
from abbe.slides.slide import read_slide
from abbe.slides.tiling import slide_mpp
from abbe.store.convert import Facts

_TIME_LIMIT = 60.0  # seconds a slide has to say what it is


def slide_facts(paths: Sequence[Path]) -> Facts:
    """slide_id → (mpp, level-0 size) of the slides named or found, each opened when it is asked for.

    The function raises BagError for a slide that is not among them or cannot be opened; one that does not say its mpp
    has None there.
    """
    slides = {slide.slide_id: slide for slide in find_slides(paths)}

    def facts(slide_id: str) -> tuple[float | None, tuple[int, int] | None]:
        if slide_id not in slides:
            raise BagError(f"--slide: no slide called {slide_id!r} among the {len(slides)} found")
        return _facts(slides[slide_id])

    return facts


def _facts(slide: FoundSlide) -> tuple[float | None, tuple[int, int]]:
    if slide.odd:
        raise BagError(f"--slide {slide.path}: {slide.odd}")
    try:
        with read_slide("describe", slide.path, time_limit=_TIME_LIMIT) as frames:
            about = next(frames).header
    except SlideError as error:
        late = f"does not say its size within {_TIME_LIMIT:g} s; leave it out, and use --override-mpp"
        said = late if error.stage == "time limit" else f"{error.stage}: {error.reason}"
        raise BagError(f"--slide {slide.path}: {said}") from error
    width, height = about["levels"][0]
    try:
        mpp = slide_mpp(about["mpp_x"], about["mpp_y"], None)
    except SlideError:
        mpp = None  # what needs it says so, naming the option
    return mpp, (width, height)
