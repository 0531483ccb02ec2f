"""Pictures, judged by their pixels: the rectangle is where the patch is, in the colour its token has."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from abbe.store.tokens import SlideTokens
from abbe.view.figure import Figure, png
from abbe.view.gallery import gallery_figure, gallery_rows
from abbe.view.overlay import overview_figure, slot_figure, truth_figure, weight_figure
from abbe.view.painting import Thumbnail, paint, scale_bar_um, token_colours
from abbe.view.report import Picture, Section, write_report


def tokens(*, merges: bool = True) -> SlideTokens:
    """Four patches: two mostly in token 2, one in token 0, one dropped."""
    return SlideTokens(
        tokens=torch.zeros(3, 4),
        mask=torch.tensor([True, False, True]),
        mass=torch.tensor([1.0, 0.0, 1.5]),
        attention=torch.tensor([0.25, 0.0, 0.75]),
        index=torch.tensor([[2, 0], [2, -1], [0, 2], [-1, -1]], dtype=torch.int32),
        weight=torch.tensor([[0.8, 0.2], [0.6, 0.0], [0.7, 0.1], [0.0, 0.0]]),
        coords=torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]]),
        patch_size_level0=100.0,
        about={"slide_id": "s", "merges": merges, "condenser": "x"},
    )


def thumbnail() -> Thumbnail:
    return Thumbnail(np.full((80, 100, 3), 255, np.uint8), 2.5, 0.5)


def test_contribution_and_main_token() -> None:
    made = tokens()
    assert made.main_token.tolist() == [2, 2, 0, -1]
    # Token 2 (attention 0.75) got 0.8 + 0.6 + 0.1 = 1.5; token 0 (0.25) got 0.2 + 0.7 = 0.9.
    expected = [0.75 * 0.8 / 1.5 + 0.25 * 0.2 / 0.9, 0.75 * 0.6 / 1.5, 0.25 * 0.7 / 0.9 + 0.75 * 0.1 / 1.5, 0.0]
    assert made.contribution.tolist() == pytest.approx(expected)
    assert float(made.contribution.sum()) == pytest.approx(1.0)


def test_rectangles_are_true_and_leave_no_gaps() -> None:
    colours = np.array([[1.0, 0, 0, 1], [0, 1.0, 0, 1], [0, 0, 1.0, 0.5], [1, 1, 1, 0]])
    painted = paint(thumbnail(), tokens().coords.numpy(), 100.0, colours)
    assert (painted[:40, :40] == [255, 0, 0]).all()
    assert (painted[:40, 40:80] == [0, 255, 0]).all()
    assert (painted[40:80, :40] == [128, 128, 255]).all()
    assert (painted[40:, 40:] == 255).all()
    assert (painted[:, 80:] == 255).all()


@pytest.mark.parametrize("size", [33.0, 7.3, 0.4])
def test_neighbours_touch_whatever_the_scale(size: float) -> None:
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2) * size
    painted = paint(thumbnail(), grid, size, np.tile([0, 0, 0, 1.0], (36, 1)))
    rows, columns = np.nonzero((painted == 0).all(2))
    assert (painted[: rows.max() + 1, : columns.max() + 1] == 0).all()


def test_colours_are_distinct() -> None:
    colours = token_colours(32)
    apart = np.abs(colours[:, None] - colours[None]).sum(2)[~np.eye(32, dtype=bool)]
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert apart.min() > 0.15


def decoded(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))


def test_slot_and_weight_pictures_show_their_patches() -> None:
    blank = decoded(slot_figure(thumbnail(), _all_dropped()))
    drawn = decoded(slot_figure(thumbnail(), tokens()))
    assert (drawn.min(2) < 120).sum() > 5 * (blank.min(2) < 120).sum()
    weights = decoded(weight_figure(thumbnail(), tokens()))
    assert (weights.max(2) < 140).any(), "the darkest colour of the scale is drawn"
    assert png(slot_figure(thumbnail(), tokens())) == png(slot_figure(thumbnail(), tokens()))


def _all_dropped() -> SlideTokens:
    made = tokens()
    made.index[:] = -1
    made.weight[:] = 0
    return made


def test_gallery_takes_the_most_typical_patches_of_the_largest_tokens() -> None:
    rows = gallery_rows(tokens())
    assert [(label, numbers.tolist()) for label, numbers in rows] == [("2\n75.0%", [0, 1]), ("0\n25.0%", [2])]
    images = [np.full((len(numbers), 16, 16, 3), 10, np.uint8) for _, numbers in rows]
    assert decoded(gallery_figure(tokens(), rows, images)).ndim == 3


def test_a_selection_shows_what_it_kept() -> None:
    index = torch.tensor([[1], [-1], [0], [-1]], dtype=torch.int32)
    weight = (index >= 0).float()
    kept = SlideTokens(**{**vars(tokens(merges=False)), "index": index, "weight": weight})
    assert [numbers.tolist() for _, numbers in gallery_rows(kept)] == [[2, 0]]
    drawn = decoded(slot_figure(thumbnail(), kept))
    assert (drawn != decoded(slot_figure(thumbnail(), _all_dropped()))).any()


def test_truth_is_drawn_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.png"
    Image.fromarray(np.array([[0, 255], [1, 1]], np.uint8)).save(path)
    big = Thumbnail(np.full((200, 200, 3), 255, np.uint8), 1.0, None)
    drawn = decoded(truth_figure(big, path, ["stroma", "muscle", "fat"]))
    assert ((drawn != 255).any(2)).sum() > 1000
    overview = overview_figure(big, tokens(), path, ["stroma", "muscle", "fat"])
    assert decoded(overview).shape[1] > 900
    assert len(overview.axes) == 3


@pytest.mark.parametrize(("width", "bar"), [(1000.0, 200.0), (2400.0, 200.0), (2600.0, 500.0), (60_000.0, 10_000.0)])
def test_scale_bars_are_round_and_at_most_a_fifth(width: float, bar: float) -> None:
    assert scale_bar_um(width) == bar


def test_the_report_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    picture = Picture(png(slot_figure(thumbnail(), tokens())), 'say "hi"')
    section = Section("<b>s</b>", ["a < b"], ["x"], [["<script>alert(1)</script>"]], [picture])
    write_report(tmp_path / "r.html", "T & T", [section])
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page
    assert "&lt;b&gt;s&lt;/b&gt;" in page
    assert "T &amp; T" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page
