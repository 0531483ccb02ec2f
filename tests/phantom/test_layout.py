"""The layout engine: exact counts, one connected deposit, ragged but faithful pixel maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from abbe.phantom.classes import PHANTOM
from abbe.phantom.layout import Layout, pixel_classes
from abbe.phantom.render.tissue import GLASS
from abbe.phantom.tasks import needle_layout


def make(seed=0, n=400, tumour_class=7, fraction=0.03, shape=None) -> Layout:
    return needle_layout(np.random.default_rng(seed), n, tumour_class=tumour_class, fraction=fraction, shape=shape)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 700),
    tumour_class=st.sampled_from(PHANTOM.tumours),
    fraction=st.floats(0.0005, 1.0),
)
def test_needle_layout_keeps_its_promises(seed, n, tumour_class, fraction):
    layout = make(seed, n, tumour_class, fraction)
    wanted = max(1, round(fraction * n))
    assert layout.classes.dtype == np.uint8
    assert layout.tissue.sum() == n == len(layout.coords) == sum(layout.counts.values())
    assert layout.counts[tumour_class] == wanted
    assert set(layout.counts) <= {*PHANTOM.rest, tumour_class}
    pieces = ndimage.label(layout.classes == tumour_class)[1]  # 4-connected
    assert pieces == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 24), columns=st.integers(1, 24), data=st.data())
def test_a_given_raster_is_kept(seed, rows, columns, data):
    n = data.draw(st.integers(1, rows * columns))
    fraction = data.draw(st.sampled_from([0.001, 0.1, 0.6, 1.0]))
    layout = make(seed, n, fraction=fraction, shape=(rows, columns))
    assert layout.shape == (rows, columns)
    assert layout.tissue.sum() == n
    assert ndimage.label(layout.classes == 7)[1] == 1


def test_a_needle_is_there_at_a_thousandth():
    assert make(n=300, fraction=0.001).counts[7] == 1
    assert make(n=2000, fraction=0.001).counts[7] == 2


def test_coords_are_in_raster_order_and_match_the_map():
    layout = make()
    x, y = layout.coords.T
    assert (np.diff(y * layout.shape[1] + x) > 0).all()
    np.testing.assert_array_equal(layout.classes[y, x], layout.patch_classes)
    assert (layout.patch_classes != GLASS).all()


def test_layouts_repeat_and_differ_by_seed():
    np.testing.assert_array_equal(make(3).classes, make(3).classes)
    assert not np.array_equal(make(3).classes, make(4, shape=make(3).shape).classes)


def test_tissue_lies_in_a_few_pieces_with_glass_around():
    for seed in range(8):
        layout = make(seed, n=2000)
        labels, pieces = ndimage.label(layout.tissue, np.ones((3, 3)))
        sizes = np.sort(np.bincount(labels.ravel())[1:])
        assert sizes[-3:].sum() > 0.95 * 2000, f"{pieces} pieces"
        assert 0.3 < layout.tissue.mean() < 0.6
        border = np.concatenate([layout.tissue[[0, -1]].ravel(), layout.tissue[:, [0, -1]].ravel()])
        assert border.mean() < 0.1


def test_normal_classes_are_mixed_between_slides_and_contiguous_within():
    seen, alike = set(), []
    for seed in range(20):
        classes = make(seed, n=1000, fraction=0.001).classes
        seen |= set(np.unique(classes)) - {GLASS, 7}
        both = (classes[:, 1:] != GLASS) & (classes[:, :-1] != GLASS)
        alike.append((classes[:, 1:] == classes[:, :-1])[both].mean())
    assert seen == set(PHANTOM.rest)
    assert np.mean(alike) > 0.8


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"tumour_class": 2}, "tumour_class must be one of 6, 7, 8, 9, 10, 11, got 2"),
        ({"fraction": 0.0}, "got 0.0"),
        ({"fraction": 1.5}, "got 1.5"),
        ({"fraction": float("nan")}, "got nan"),
        ({"n": 10, "shape": (3, 3)}, r"shape \(3, 3\) cannot hold n = 10"),
    ],
)
def test_bad_arguments_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        make(**kwargs)


def test_a_layout_refuses_another_array():
    with pytest.raises(ValueError, match="int64"):
        Layout(np.zeros((2, 2), np.int64))


@pytest.mark.parametrize("patch_size", [32, 37, 64])
def test_pixel_maps_are_seamless_and_keep_the_majority(patch_size):
    layout = make(1, n=60, fraction=0.2, shape=(10, 11))
    height, width = 10 * patch_size, 11 * patch_size
    whole = pixel_classes(layout, 0, 0, width, height, patch_size, 3)
    for x, y, w, h in ((0, 0, 50, 70), (33, 90, 101, 45), (width - 40, height - 30, 40, 30)):
        part = pixel_classes(layout, x, y, w, h, patch_size, 3)
        np.testing.assert_array_equal(part, whole[y : y + h, x : x + w])
    patches = whole.reshape(10, patch_size, 11, patch_size)
    share = (patches == layout.classes[:, None, :, None]).mean((1, 3))
    assert (share > 0.5).mean() > 0.97
    assert (share < 1).mean() > 0.3  # and borders did move
    assert not np.array_equal(whole, pixel_classes(layout, 0, 0, width, height, patch_size, 4))


def test_pixels_outside_the_raster_are_glass_and_uniform_areas_uniform():
    layout = Layout(np.full((3, 3), 4, np.uint8))
    assert (pixel_classes(layout, -500, 40, 60, 20, 64, 0) == GLASS).all()
    assert (pixel_classes(layout, 5000, 5000, 60, 20, 64, 0) == GLASS).all()
    assert (pixel_classes(layout, 70, 70, 40, 40, 64, 0) == 4).all()


def test_bad_pixel_requests_are_refused():
    layout = make()
    with pytest.raises(ValueError, match="got 2"):
        pixel_classes(layout, 0, 0, 5, 5, 2, 0)
    with pytest.raises(ValueError, match="0 x 5"):
        pixel_classes(layout, 0, 0, 0, 5, 64, 0)
