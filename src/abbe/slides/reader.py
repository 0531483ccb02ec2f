"""The child process that reads slides: `python -m abbe.slides.reader`.

Damaged tiles can crash or hang native decoders, so every slide is read in a process of its own, which the parent
(`abbe.slides.slide`) can kill. It does not import torch, so that it starts quickly.

In: the job as one JSON line on stdin, which stays open; the child exits when stdin ends, because the parent is gone.
Out: frames on stdout, each a 4-byte little-endian length, a JSON header of that length, and `header["bytes"]` bytes of
payload. The last frame is `end`, `empty` or `failed`. The label and macro images of a slide are never read.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image

from abbe.errors import SlideError
from abbe.slides.tiling import SAME_SCALE, TilePlan, choose_level, plan_tiles, slide_mpp
from abbe.slides.tissue import MASK_UM, tissue_mask

Send = Callable[..., None]
Pixels = NDArray[np.uint8]
_BLOCK = 2048  # side of the blocks read for a thumbnail, in pixels of the level
_THUMBNAIL_PIXELS = 1 << 24  # at most; a larger thumbnail is made coarser


def main() -> None:
    """Do one job and exit."""
    # Native libraries print to descriptor 1: frames get a descriptor of their own, and 1 becomes stderr.
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(kind: str, payload: bytes = b"", **header: Any) -> None:
        text = json.dumps({"kind": kind, "bytes": len(payload), **header}).encode()
        frames.write(struct.pack("<I", len(text)) + text + payload)
        frames.flush()

    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        JOBS[job.pop("job")](send, **job)
    except SlideError as error:
        send("failed", stage=error.stage, reason=error.reason)
    frames.close()


def _exit_with_parent() -> None:
    # Reads the descriptor itself: a daemon thread that holds the lock of sys.stdin aborts the interpreter at exit.
    while os.read(0, 1 << 10):
        pass
    os._exit(1)


def tiles(
    send: Send,
    *,
    path: str,
    target_mpp: float,
    patch_size: int,
    overlap: int,
    override_mpp: float | None,
    batch: int,
) -> None:
    """Send the patches of a slide: a `plan` with the coords as payload, then `patches` in batches; or `empty`."""
    slide = _open(path)
    mpp, warnings = _mpp(slide, override_mpp)
    # Refuses a slide that is too coarse before reading from it.
    level, read_size = choose_level(mpp, slide.level_downsamples, target_mpp=target_mpp, patch_size=patch_size)
    size_level0 = read_size * slide.level_downsamples[level]
    thumbnail, downsample = _thumbnail(slide, MASK_UM / mpp)
    tissue = tissue_mask(thumbnail, mpp * downsample)
    geometry = {"mpp": mpp, "size_level0": list(slide.dimensions), "warnings": [*warnings, *tissue.warnings]}
    small = min(slide.dimensions) < size_level0
    if small or tissue.reason is not None:
        reason = _in_pixels("smaller than a patch", slide, size_level0) if small else tissue.reason
        send("empty", reason=reason, **geometry)
        return
    plan = plan_tiles(
        slide.dimensions,
        mpp,
        slide.level_downsamples,
        target_mpp=target_mpp,
        patch_size=patch_size,
        overlap=overlap,
        mask=tissue.mask,
        mask_downsample=downsample,
    )
    if len(plan.coords) == 0:
        send("empty", reason=_in_pixels("no patch has enough tissue", slide, size_level0), **geometry)
        return
    send(
        "plan",
        plan.coords.astype("<i8").tobytes(),
        patches=len(plan.coords),
        patch_size_level0=plan.patch_size_level0,
        stride_level0=plan.stride_level0,
        **geometry,
    )
    for patches in _batches(slide, plan, patch_size, batch):
        send("patches", patches.tobytes(), count=len(patches))
    send("end")


def _in_pixels(why: str, slide: openslide.OpenSlide, size_level0: float) -> str:
    width, height = slide.dimensions
    return f"{why} ({width} × {height} level-0 pixels; a patch has {size_level0:g})"


def describe(send: Send, *, path: str) -> None:
    """Send the format and geometry of a slide as one `about` frame.

    Only these properties are sent, because others may name a patient, and only the names of associated images.
    """
    slide = _open(path)
    send(
        "about",
        vendor=slide.properties.get(openslide.PROPERTY_NAME_VENDOR),
        levels=[list(size) for size in slide.level_dimensions],
        mpp_x=slide.properties.get(openslide.PROPERTY_NAME_MPP_X),
        mpp_y=slide.properties.get(openslide.PROPERTY_NAME_MPP_Y),
        objective=slide.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER),
        images=sorted(slide.associated_images),
    )
    send("end")


def thumbnail(send: Send, *, path: str, side: int) -> None:
    """Send the slide, about `side` pixels on its longer side (reduced by an integer), as one `thumbnail` frame."""
    slide = _open(path)
    pixels, downsample = _thumbnail(slide, max(1.0, max(slide.dimensions) / side))
    send("thumbnail", pixels.tobytes(), shape=list(pixels.shape), downsample=downsample)
    send("end")


def regions(send: Send, *, path: str, coords: list[list[int]], size_level0: float, side: int) -> None:
    """Send the squares at `coords` (top-left, level-0 pixels), resized to `side` pixels, as one `patches` frame."""
    slide = _open(path)
    level = slide.get_best_level_for_downsample(max(1.0, size_level0 / side))
    read_size = max(1, round(size_level0 / slide.level_downsamples[level]))
    patches = [_resized(_read(slide, (x, y), level, (read_size, read_size)), side) for x, y in coords]
    send("patches", b"".join(pixels.tobytes() for pixels in patches), count=len(patches))
    send("end")


JOBS: dict[str, Callable[..., None]] = {job.__name__: job for job in (tiles, describe, thumbnail, regions)}


def _open(path: str) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError("open", f"{_unsupported(path)} ({error})") from error
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError("open", str(error)) from error


def _unsupported(path: str) -> str:
    """Why OpenSlide does not read a file, as far as that can be known."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            if not page.is_tiled:
                bits = page.dtype.itemsize * 8 if page.dtype is not None else 0
                return f"a TIFF of {bits} bits in strips; OpenSlide reads tiled TIFFs of 8 bits"
    except Exception:  # noqa: BLE001  not a TIFF that tells more
        pass
    return "not a slide that OpenSlide can read, or cut short"


def _mpp(slide: openslide.OpenSlide, override: float | None) -> tuple[float, list[str]]:
    """Microns per level-0 pixel, and a warning if the user's value contradicts the slide's."""
    x = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
    y = slide.properties.get(openslide.PROPERTY_NAME_MPP_Y)
    mpp = slide_mpp(x, y, override)
    if override is None:
        return mpp, []
    try:
        stated = slide_mpp(x, y, None)
    except SlideError:  # missing or wrong, which is why the user overrides it
        return mpp, []
    differs = abs(stated - mpp) > SAME_SCALE * stated
    return mpp, [f"the slide states {stated:g} µm per pixel, --override-mpp is {mpp:g}"] if differs else []


def _read(slide: openslide.OpenSlide, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
    """A region as uint8 [h, w, 3] over white. An error is final: an OpenSlide handle does not recover from it."""
    try:
        region = slide.read_region(corner, level, size)
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError("read", f"level {level} at {corner}: {error}") from error
    pixels = np.asarray(region)
    if pixels[..., 3].min() == 255:
        return pixels[..., :3]
    white = Image.new("RGBA", region.size, "white")  # areas that were not scanned count as glass
    return np.asarray(Image.alpha_composite(white, region))[..., :3]


def _resized(pixels: Pixels, side: int) -> Pixels:
    if pixels.shape[0] == side:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0))


def _batches(slide: openslide.OpenSlide, plan: TilePlan, patch_size: int, batch: int) -> Iterator[Pixels]:
    size = (plan.read_size, plan.read_size)
    for start in range(0, len(plan.coords), batch):
        corners = plan.coords[start : start + batch].tolist()
        yield np.stack([_resized(_read(slide, (x, y), plan.level, size), patch_size) for x, y in corners])


def _thumbnail(slide: openslide.OpenSlide, wanted: float) -> tuple[Pixels, float]:
    """Thumbnail uint8 [h, w, 3] and its downsample (about `wanted`): means over the best level.

    Computed block by block, because the only level of a slide may have gigapixels.
    """
    downsamples = slide.level_downsamples
    level = max((n for n, d in enumerate(downsamples) if d <= max(1.0, 1.05 * wanted)), key=lambda n: downsamples[n])
    width, height = slide.level_dimensions[level]
    smallest = math.ceil(math.sqrt(width * height / _THUMBNAIL_PIXELS))
    factor = max(1, round(wanted / downsamples[level]), smallest)
    side = max(1, _BLOCK // factor) * factor
    pixels = np.empty((math.ceil(height / factor), math.ceil(width / factor), 3), np.uint8)
    for y in range(0, height, side):
        for x in range(0, width, side):
            corner = (round(x * downsamples[level]), round(y * downsamples[level]))
            block = _read(slide, corner, level, (min(side, width - x), min(side, height - y)))
            small = np.asarray(
                Image.fromarray(block).reduce(factor)
            )  # means of factor × factor pixels, fewer at the border
            row, column = y // factor, x // factor
            pixels[row : row + small.shape[0], column : column + small.shape[1]] = small
    return pixels, downsamples[level] * factor


if __name__ == "__main__":
    main()
