"""Patches drawn on a slide's thumbnail, as true rectangles: coloured by slot, or by how much they counted."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from abbe.metrics.plots import png
from abbe.models.condense import SlideTokens

_SCALE_BAR_SHARE = 0.2  # of the picture's width, at most
_ALPHA = 0.6
_GREY = (0.55, 0.55, 0.55)
_LEGEND_ROWS = 16


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """pixels: uint8 [h, w, 3].   downsample: level-0 pixels a thumbnail pixel.   mpp: at level 0, or None."""

    pixels: np.ndarray
    downsample: float
    mpp: float | None


def token_colours(k: int) -> np.ndarray:
    """k colours, float [k, 3]: even hues in three lightnesses, ordered so that neighbours in number differ in hue."""
    hues = max(1, -(-k // 3))
    golden = (math.sqrt(5) - 1) / 2
    order = np.argsort((np.arange(hues) * golden) % 1)
    rows = [colorsys.hls_to_rgb(order[i % hues] / hues, (0.45, 0.68, 0.28)[i // hues], 0.9) for i in range(k)]
    return np.array(rows).reshape(k, 3)


def paint(thumbnail: Thumbnail, coords_px0: np.ndarray, size_px0: float, colours: np.ndarray) -> np.ndarray:
    """Rectangles over the thumbnail, uint8 [h, w, 3].

    coords_px0: [N, 2] top-left corners; size_px0: side; both level-0 pixels.   colours: [N, 4] RGBA in 0..1.
    """
    out = thumbnail.pixels.astype(np.float32)
    height, width = out.shape[:2]
    left_top = np.floor(coords_px0 / thumbnail.downsample).astype(int)
    # Ends are rounded from the true end, not from the start: neighbours share their border and leave no gaps.
    right_bottom = np.floor((coords_px0 + size_px0) / thumbnail.downsample).astype(int)
    right_bottom = np.maximum(right_bottom, left_top + 1)
    for (x0, y0), (x1, y1), (r, g, b, a) in zip(left_top, right_bottom, colours, strict=True):
        if x0 >= width or y0 >= height or a == 0:
            continue
        area = out[y0 : min(y1, height), x0 : min(x1, width)]
        area *= 1 - a
        area += np.array([r, g, b], np.float32) * 255 * a
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def slot_picture(thumbnail: Thumbnail, tokens: SlideTokens) -> bytes:
    """PNG: each patch in the colour of the token it mostly went to, dropped patches bare; legend by share."""
    main = tokens.main_token.numpy()
    k = len(tokens.tokens)
    palette = token_colours(k)
    share = np.bincount(main[main >= 0], minlength=k) / max(len(main), 1)
    order = [int(t) for t in np.argsort(-share, kind="stable") if share[t] > 0]
    colours = np.zeros((len(main), 4))
    kept = main >= 0
    # Colours by rank, so that the largest tokens get the colours that differ most.
    by_token = np.zeros((k, 3))
    by_token[order] = palette[: len(order)]
    colours[kept, :3], colours[kept, 3] = by_token[main[kept]], _ALPHA
    what = "slot" if tokens.about["merges"] else "kept patch"
    figure, axes = _canvas(thumbnail, paint(thumbnail, tokens.coords.numpy(), tokens.patch_size_level0, colours))
    handles = [Patch(color=by_token[t], label=f"{what} {t}: {share[t]:.1%}") for t in order[:_LEGEND_ROWS]]
    if len(order) > _LEGEND_ROWS:
        rest = share[order[_LEGEND_ROWS:]].sum()
        handles.append(Patch(color=_GREY, label=f"{len(order) - _LEGEND_ROWS} more: {rest:.1%}"))
    if not kept.all():
        handles.append(Patch(facecolor="none", edgecolor=_GREY, label=f"dropped: {(~kept).mean():.1%}"))
    title = "share of patches" if tokens.about["merges"] else "kept patches"
    _legend(axes, handles, title)
    axes.set_title(f"{tokens.about['slide_id']}: {len(main)} patches, {len(order)} of {k} tokens used", fontsize=9)
    return png(figure)


def weight_picture(thumbnail: Thumbnail, tokens: SlideTokens) -> bytes:
    """PNG: each patch by its share of what the prediction was read from (`SlideTokens.contribution`)."""
    share = tokens.contribution.numpy()
    positive = share[share > 0]
    top = float(np.quantile(positive, 0.99)) if len(positive) else 1.0
    scale = Normalize(0.0, top, clip=True)
    map_ = mpl.colormaps["inferno"]
    colours = np.asarray(map_(scale(share)))
    colours[:, 3] = np.where(share > 0, 0.7, 0.0)
    figure, axes = _canvas(thumbnail, paint(thumbnail, tokens.coords.numpy(), tokens.patch_size_level0, colours))
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, map_), ax=axes, fraction=0.035, pad=0.02)
    bar.set_label("share of the pooled vector (colours end at the 99th percentile)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(f"{tokens.about['slide_id']}: what counted", fontsize=9)
    return png(figure)


def gallery_rows(tokens: SlideTokens, *, slots: int = 12, patches: int = 8) -> list[tuple[int, np.ndarray]]:
    """(token, row numbers of its most typical patches) for the tokens with most patches, largest first."""
    main = tokens.main_token.numpy()
    weight = tokens.weight.float().numpy()
    index = tokens.index.numpy()
    counts = np.bincount(main[main >= 0], minlength=len(tokens.tokens))
    rows = []
    for token in np.argsort(-counts, kind="stable")[:slots]:
        if counts[token] == 0:
            break
        own = np.where(index == token, weight, 0.0).sum(1)
        own[main != token] = -1.0
        rows.append((int(token), np.argsort(-own, kind="stable")[: min(patches, int(counts[token]))]))
    return rows


def gallery_picture(tokens: SlideTokens, rows: list[tuple[int, np.ndarray]], images: Sequence[np.ndarray]) -> bytes:
    """PNG: a row of its most typical patches for each token. images: uint8 [n, h, w, 3] for each of `rows`."""
    columns = max((len(image) for image in images), default=1)
    figure = Figure(figsize=(1.0 * columns + 1.2, 1.02 * max(len(rows), 1) + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
    attention = tokens.attention.numpy()
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (token, chosen), patches in zip(grid, rows, images, strict=True):
        for axes, patch in zip(line, patches, strict=False):
            axes.imshow(patch)
        assert len(chosen) == len(patches)
        line[0].text(
            -0.08,
            0.5,
            f"{token}\n{attention[token]:.1%}",
            transform=line[0].transAxes,
            ha="right",
            va="center",
            fontsize=8,
        )
    figure.suptitle(f"{tokens.about['slide_id']}: most typical patches a token (number, its attention)", fontsize=9)
    return png(figure)


def scale_bar_um(width_um: float) -> float:
    """A round length, 1, 2 or 5 × 10^n microns, of at most a fifth of the picture's width."""
    room = width_um * _SCALE_BAR_SHARE
    power = 10 ** math.floor(math.log10(room))
    return max(step * power for step in (1, 2, 5) if step * power <= room)


def _canvas(thumbnail: Thumbnail, pixels: np.ndarray) -> tuple[Figure, Axes]:
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(8.5, max(3.0, 6.4 * height / width)), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()
    if thumbnail.mpp is not None:
        um_per_pixel = thumbnail.mpp * thumbnail.downsample
        length_um = scale_bar_um(width * um_per_pixel)
        length = length_um / um_per_pixel
        x, y, thick = width * 0.03, height * 0.97, max(2.0, height * 0.008)
        axes.add_patch(Rectangle((x, y - thick), length, thick, color="black"))
        text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
        axes.text(x + length / 2, y - 2 * thick, text, ha="center", va="bottom", fontsize=8,
                  bbox={"facecolor": "white", "alpha": 0.7, "pad": 1, "edgecolor": "none"})  # fmt: skip
    return figure, axes


def _legend(axes: Axes, handles: list[Patch], title: str) -> None:
    axes.legend(handles=handles, title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7,
                title_fontsize=8, frameon=False)  # fmt: skip


def truth_picture(thumbnail: Thumbnail, truth: Path, classes: Sequence[str]) -> bytes:
    """PNG: the classes of a phantom slide's truth map over it. truth: a uint8 PNG [rows, cols], 255 = glass."""
    numbers = np.asarray(Image.open(truth))
    side = thumbnail.pixels.shape[1] * thumbnail.downsample / numbers.shape[1]
    rows, columns = np.nonzero(numbers != 255)
    present = sorted(set(numbers[rows, columns].tolist()))
    palette = token_colours(len(classes))
    colours = np.full((len(rows), 4), _ALPHA)
    colours[:, :3] = palette[numbers[rows, columns]]
    figure, axes = _canvas(thumbnail, paint(thumbnail, np.stack([columns, rows], 1) * side, side, colours))
    _legend(axes, [Patch(color=palette[number], label=classes[number]) for number in present], "truth")
    axes.set_title(f"{truth.stem}: truth by patch", fontsize=9)
    return png(figure)
