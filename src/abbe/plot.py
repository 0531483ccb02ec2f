"""Pictures for notebooks. Each function returns a matplotlib Figure, which shows itself as the last line of a cell.

slide: a slide file or a `Thumbnail`.   tokens: the file `abbe condense` wrote, or the result of `condense_slide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from abbe.errors import InputError
from abbe.metrics.bootstrap import Interval
from abbe.store.tokens import SlideTokens, read_tokens
from abbe.view import heatmap
from abbe.view import overlay as pictures
from abbe.view.figure import Figure
from abbe.view.painting import Thumbnail
from abbe.view.plots import interval_plot, training_curves

__all__ = ["Figure", "Thumbnail", "curves", "gallery", "intervals", "overlay", "slots", "weight"]

Slide = str | Path | Thumbnail
Tokens = str | Path | SlideTokens
History = str | Path | pd.DataFrame


def overlay(slide: Slide, tokens: Tokens, *, side: int = 1600) -> Figure:
    """Slots and weights side by side, without legends. side: pixels of the thumbnail's longer side, about."""
    thumbnail, read = _read(slide, tokens, side)
    return pictures.overview_figure(thumbnail, read)


def slots(slide: Slide, tokens: Tokens, *, side: int = 1600) -> Figure:
    """Each patch in the colour of its main slot, with a legend by share of patches."""
    return pictures.slot_figure(*_read(slide, tokens, side))


def weight(slide: Slide, tokens: Tokens, *, side: int = 1600) -> Figure:
    """Each patch by its share of the pooled vector. Raises InputError if the model's pooling does not report it."""
    thumbnail, read = _read(slide, tokens, side)
    if not read.attended:
        raise InputError("weight: the pooling of this model does not report how much it read of each token")
    return pictures.weight_figure(thumbnail, read)


def gallery(slide: str | Path, tokens: Tokens) -> Figure:
    """Patches of the largest tokens, read from the slide file."""
    return heatmap.gallery(Path(slide), _tokens(tokens))


def curves(histories: History | Mapping[str, History]) -> Figure:
    """Validation loss by epoch. histories: a run's folder, its history.csv or its table; several by name."""
    several = histories if isinstance(histories, Mapping) else {"run": histories}
    return training_curves({name: _history(history) for name, history in several.items()})


def intervals(
    rows: Mapping[str, Interval | Mapping[str, Any]], *, label: str = "", chance: float | None = None
) -> Figure:
    """One row per metric with its interval. rows: as in result.json, {name: {"value", "low", "high"}}."""
    plain = {name: row.as_dict() if isinstance(row, Interval) else row for name, row in rows.items()}
    return interval_plot(plain, label=label, chance=chance)


def _read(slide: Slide, tokens: Tokens, side: int) -> tuple[Thumbnail, SlideTokens]:
    read = _tokens(tokens)
    return slide if isinstance(slide, Thumbnail) else heatmap.thumbnail_for(Path(slide), read, side=side), read


def _tokens(tokens: Tokens) -> SlideTokens:
    return tokens if isinstance(tokens, SlideTokens) else read_tokens(tokens)


def _history(history: History) -> pd.DataFrame:
    if isinstance(history, pd.DataFrame):
        return history
    path = Path(history)
    return pd.read_csv(path / "history.csv" if path.is_dir() else path)
