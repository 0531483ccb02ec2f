"""Figures that show themselves in a notebook, and their PNG."""

from __future__ import annotations

from io import BytesIO

import matplotlib.figure


class Figure(matplotlib.figure.Figure):
    """A matplotlib Figure that a notebook displays, whether or not pyplot is in use."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """The figure as PNG, without the version of matplotlib: equal figures give equal bytes."""
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
