"""A slide's patches on its thumbnail, coloured by slot, by weight or by their true class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from abbe.store.tokens import SlideTokens
from abbe.view.figure import Figure
from abbe.view.painting import Thumbnail, paint, scale_bar_um, token_colours

_ALPHA = 0.6
_GREY = (0.55, 0.55, 0.55)
_LEGEND_ROWS = 16
_HEAT = mpl.colormaps["inferno"]


def slot_figure(thumbnail: Thumbnail, tokens: SlideTokens) -> Figure:
    """Each patch in the colour of its main slot, with a legend by share of patches.

    For a method that selects, kept patches are coloured and dropped patches are not.
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
    return figure


def weight_figure(thumbnail: Thumbnail, tokens: SlideTokens) -> Figure:
    """Each patch coloured by its share of the pooled vector (`SlideTokens.contribution`)."""
    colours, scale = _weight_colours(tokens)
    figure, axes = _canvas(thumbnail, _painted(thumbnail, tokens, colours))
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, _HEAT), ax=axes, fraction=0.035, pad=0.02)
    bar.set_label("share of the pooled vector (colours end at the 99th percentile)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(f"{tokens.about['slide_id']}: what counted", fontsize=9)
    return figure


def truth_figure(thumbnail: Thumbnail, truth: Path, classes: Sequence[str]) -> Figure:
    """The truth map of a phantom slide, by class. truth: a uint8 PNG [rows, cols] of class numbers, 255 = glass."""
    pixels, present, palette = _painted_truth(thumbnail, truth, classes)
    figure, axes = _canvas(thumbnail, pixels)
    _legend(axes, [Patch(color=palette[number], label=classes[number]) for number in present], "truth")
    axes.set_title(f"{truth.stem}: truth by patch", fontsize=9)
    return figure


def overview_figure(
    thumbnail: Thumbnail, tokens: SlideTokens, truth: Path | None = None, classes: Sequence[str] = ()
) -> Figure:
    """Truth map (for phantom slides), slots and weights side by side, without legends.

    Weights are left out if the pooling does not report them.
    """
    panels = {}
    if truth is not None:
        panels["truth by patch"] = _painted_truth(thumbnail, truth, classes)[0]
    panels["where the slots put each patch"] = _painted(thumbnail, tokens, _slot_colours(tokens)[0])
    if tokens.attended:
        panels["what the prediction was read from"] = _painted(thumbnail, tokens, _weight_colours(tokens)[0])
    height, width = thumbnail.pixels.shape[:2]
    figure = Figure(figsize=(3.5 * len(panels), 3.4 * height / width + 0.35), dpi=100, layout="constrained")
    for axes, (title, pixels) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return figure


def _slot_colours(tokens: SlideTokens) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """(RGBA of each patch [N, 4], RGB of each token [K, 3], tokens in use by share, share of each token [K])."""
    main, k = tokens.main_token.numpy(), len(tokens.tokens)
    share = np.bincount(main[main >= 0], minlength=k) / max(len(main), 1)
    order = [int(token) for token in np.argsort(-share, kind="stable") if share[token] > 0]
    by_token = np.zeros((k, 3))
    # Colours by rank: the largest slots get the colours that differ most. Kept patches share one colour.
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
    """(pixels, numbers of the classes present, RGB of each class) of a truth map on its slide."""
    numbers = np.asarray(Image.open(truth))
    side = thumbnail.pixels.shape[1] * thumbnail.downsample / numbers.shape[1]
    rows, columns = np.nonzero(numbers != 255)
    palette = token_colours(len(classes))
    colours = np.full((len(rows), 4), _ALPHA)
    colours[:, :3] = palette[numbers[rows, columns]]
    pixels = paint(thumbnail, np.stack([columns, rows], 1) * side, side, colours)
    return pixels, sorted(set(numbers[rows, columns].tolist())), palette


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
