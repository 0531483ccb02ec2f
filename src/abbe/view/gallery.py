"""The patches that tokens stand for, as images in rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from abbe.store.tokens import SlideTokens
from abbe.view.figure import Figure


def gallery_rows(tokens: SlideTokens, *, lines: int = 12, patches: int = 8) -> list[tuple[str, np.ndarray]]:
    """(label, row numbers of patches) of each line of a gallery.

    For a method that merges: one line per token, largest first, with the patches of largest weight in it. For a method
    that selects: the kept patches, largest contribution first.
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


def gallery_figure(tokens: SlideTokens, rows: list[tuple[str, np.ndarray]], images: Sequence[np.ndarray]) -> Figure:
    """The patches of `gallery_rows`. images: uint8 [n, h, w, 3] for each of `rows`."""
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
    merged = f"most typical patches per slot (number{', attention' if tokens.attended else ''})"
    what = merged if tokens.about["merges"] else "kept patches" + (", by weight" if tokens.attended else "")
    figure.suptitle(f"{tokens.about['slide_id']}: {what}", fontsize=9)
    return figure
