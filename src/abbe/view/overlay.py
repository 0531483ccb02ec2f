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

from abbe.store.tokens import SlideTokens
from abbe.view.plots import png

_SCALE_BAR_SHARE = 0.2  # of the picture's width, at most
_ALPHA = 0.6
_GREY = (0.55, 0.55, 0.55)
_LEGEND_ROWS = 16
_HUES = 10  # that can be told apart at one lightness
_HEAT = mpl.colormaps["inferno"]


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """pixels: uint8 [h, w, 3].   downsample: level-0 pixels a thumbnail pixel.   mpp: at level 0, or None."""

    pixels: np.ndarray
    downsample: float
    mpp: float | None


def token_colours(k: int) -> np.ndarray:
    """k colours, float [k, 3]: even hues, in three lightnesses where many; neighbours in number differ in hue."""
    hues = max(1, k if k <= _HUES else -(-k // 3))
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
    """PNG: each patch in the colour of the slot it mostly went to, with a legend by share of patches.

    For a method that selects, kept patches are coloured and dropped ones bare.
    """
    main, k = tokens.main_token.numpy(), len(tokens.tokens)
    colours, by_token, order, share = _slot_colours(tokens)
    figure, axes = _canvas(thumbnail, _painted(thumbnail, tokens, colours))
    dropped, used = float((main < 0).mean()), int(tokens.mask.sum())
    if tokens.about["merges"]:
        handles = [Patch(color=by_token[t], label=f"slot {t}: {share[t]:.1%}") for t in order[:_LEGEND_ROWS]]
        if len(order) > _LEGEND_ROWS:
            others = share[order[_LEGEND_ROWS:]].sum()
            handles.append(Patch(color=_GREY, label=f"{len(order) - _LEGEND_ROWS} more: {others:.1%}"))
    else:
        handles = [Patch(color=by_token[order[0]], label=f"kept: {1 - dropped:.1%}")] if order else []
    if dropped:
        handles.append(Patch(facecolor="none", edgecolor=_GREY, label=f"dropped: {dropped:.1%}"))
    _legend(axes, handles, "share of patches")
    axes.set_title(f"{tokens.about['slide_id']}: {len(main)} patches, {used} of {k} tokens used", fontsize=9)
    return png(figure)


def weight_picture(thumbnail: Thumbnail, tokens: SlideTokens) -> bytes:
    """PNG: each patch by its share of what the prediction was read from (`SlideTokens.contribution`)."""
    colours, scale = _weight_colours(tokens)
    figure, axes = _canvas(thumbnail, _painted(thumbnail, tokens, colours))
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, _HEAT), ax=axes, fraction=0.035, pad=0.02)
    bar.set_label("share of the pooled vector (colours end at the 99th percentile)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(f"{tokens.about['slide_id']}: what counted", fontsize=9)
    return png(figure)


def truth_picture(thumbnail: Thumbnail, truth: Path, classes: Sequence[str]) -> bytes:
    """PNG: the classes of a phantom slide's truth map over it. truth: a uint8 PNG [rows, cols], 255 = glass."""
    pixels, present, palette = _painted_truth(thumbnail, truth, classes)
    figure, axes = _canvas(thumbnail, pixels)
    _legend(axes, [Patch(color=palette[number], label=classes[number]) for number in present], "truth")
    axes.set_title(f"{truth.stem}: truth by patch", fontsize=9)
    return png(figure)


def overview_picture(thumbnail: Thumbnail, tokens: SlideTokens, truth: Path, classes: Sequence[str]) -> bytes:
    """PNG: truth, slots and weight of a phantom slide side by side, without legends."""
    panels = {
        "truth by patch": _painted_truth(thumbnail, truth, classes)[0],
        "where the slots put each patch": _painted(thumbnail, tokens, _slot_colours(tokens)[0]),
        "what the prediction was read from": _painted(thumbnail, tokens, _weight_colours(tokens)[0]),
    }
    height, width = thumbnail.pixels.shape[:2]
    figure = Figure(figsize=(10.5, 3.4 * height / width + 0.35), dpi=100, layout="constrained")
    for axes, (title, pixels) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return png(figure)


def _slot_colours(tokens: SlideTokens) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """(RGBA of each patch [N, 4], RGB of each token [K, 3], tokens in use by share, share of each token [K])."""
    main, k = tokens.main_token.numpy(), len(tokens.tokens)
    share = np.bincount(main[main >= 0], minlength=k) / max(len(main), 1)
    order = [int(token) for token in np.argsort(-share, kind="stable") if share[token] > 0]
    by_token = np.zeros((k, 3))
    # Colours by rank, so that the largest slots get the colours that differ most; kept patches are all alike.
    by_token[order] = token_colours(len(order)) if tokens.about["merges"] else token_colours(1)
    colours = np.zeros((len(main), 4))
    kept = main >= 0
    colours[kept, :3], colours[kept, 3] = by_token[main[kept]], _ALPHA
    return colours, by_token, order, share


def _weight_colours(tokens: SlideTokens) -> tuple[np.ndarray, Normalize]:
    """(RGBA of each patch [N, 4], the scale of its colours)."""
    share = tokens.contribution.numpy()
    positive = share[share > 0]
    scale = Normalize(0.0, float(np.quantile(positive, 0.99)) if len(positive) else 1.0, clip=True)
    colours = np.asarray(_HEAT(scale(share)))
    colours[:, 3] = np.where(share > 0, 0.7, 0.0)
    return colours, scale


def _painted(thumbnail: Thumbnail, tokens: SlideTokens, colours: np.ndarray) -> np.ndarray:
    return paint(thumbnail, tokens.coords.numpy(), tokens.patch_size_level0, colours)


def _painted_truth(
    thumbnail: Thumbnail, truth: Path, classes: Sequence[str]
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """(pixels, classes present, RGB of each class) of a truth map over its slide."""
    numbers = np.asarray(Image.open(truth))
    side = thumbnail.pixels.shape[1] * thumbnail.downsample / numbers.shape[1]
    rows, columns = np.nonzero(numbers != 255)
    palette = token_colours(len(classes))
    colours = np.full((len(rows), 4), _ALPHA)
    colours[:, :3] = palette[numbers[rows, columns]]
    pixels = paint(thumbnail, np.stack([columns, rows], 1) * side, side, colours)
    return pixels, sorted(set(numbers[rows, columns].tolist())), palette


def gallery_rows(tokens: SlideTokens, *, lines: int = 12, patches: int = 8) -> list[tuple[str, np.ndarray]]:
    """(label, row numbers of patches) of each line of a gallery.

    A method that merges gets a line a token, those with most patches first, each with its most typical patches; one
    that selects gets its kept patches, those that counted most first.
    """
    if not tokens.about["merges"]:
        share = tokens.contribution.numpy()
        best = np.argsort(-share, kind="stable")[: min(lines * patches, int((tokens.main_token >= 0).sum()))]
        return [(f"{start + 1}–", best[start : start + patches]) for start in range(0, len(best), patches)]
    main, attention = tokens.main_token.numpy(), tokens.attention.numpy()
    weight, index = tokens.weight.float().numpy(), tokens.index.numpy()
    counts = np.bincount(main[main >= 0], minlength=len(tokens.tokens))
    rows = []
    for token in np.argsort(-counts, kind="stable")[:lines]:
        if counts[token] == 0:
            break
        own = np.where(index == token, weight, 0.0).sum(1)
        own[main != token] = -1.0
        chosen = np.argsort(-own, kind="stable")[: min(patches, int(counts[token]))]
        rows.append((f"{token}\n{attention[token]:.1%}" if tokens.attended else f"{token}", chosen))
    return rows


def gallery_picture(tokens: SlideTokens, rows: list[tuple[str, np.ndarray]], images: Sequence[np.ndarray]) -> bytes:
    """PNG: the patches of `gallery_rows`. images: uint8 [n, h, w, 3] for each of `rows`."""
    columns = max((len(image) for image in images), default=1)
    figure = Figure(figsize=(1.0 * columns + 1.2, 1.02 * max(len(rows), 1) + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (label, _), patches in zip(grid, rows, images, strict=True):
        for axes, patch in zip(line, patches, strict=False):
            axes.imshow(patch)
        left = line[0]
        left.text(-0.08, 0.5, label, transform=left.transAxes, ha="right", va="center", fontsize=8)
    merged = f"most typical patches a slot (number{', its attention' if tokens.attended else ''})"
    what = merged if tokens.about["merges"] else "kept patches" + (", by weight" if tokens.attended else "")
    figure.suptitle(f"{tokens.about['slide_id']}: {what}", fontsize=9)
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
