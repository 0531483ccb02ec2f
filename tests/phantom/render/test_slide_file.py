"""Phantom slides: OpenSlide opens them, their truth is what was rendered, and their bytes are reproducible."""

from __future__ import annotations

import json

import numpy as np
import openslide
import pytest
from PIL import Image

from abbe.phantom.layout import Layout, pixel_classes
from abbe.phantom.render import slide_file as phantom_slides
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import GLASS, TISSUE_CLASSES, render, site_stain
from abbe.phantom.tasks import needle_layout
from abbe.store.commit import is_done, read_sidecar

STAIN = site_stain(2, 1, 0)
PATCH = 64


@pytest.fixture(scope="module")
def layout() -> Layout:
    return needle_layout(np.random.default_rng(7), 120, tumour_class=9, fraction=0.1, shape=(16, 17))


@pytest.fixture(scope="module")
def folder(layout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    path = write_phantom_slide(folder, "P-001", layout, stain=STAIN, seed=3, patch_size=PATCH)
    assert path == folder / "slides" / "P-001.tiff"
    return folder


def test_openslide_sees_levels_and_resolution(folder):
    with openslide.OpenSlide(str(folder / "slides" / "P-001.tiff")) as slide:
        assert slide.dimensions == (17 * PATCH, 16 * PATCH)
        assert slide.level_count >= 3
        assert slide.level_downsamples == pytest.approx((1, 4, 16), rel=0.02)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert slide.properties["openslide.level[0].tile-width"] == "512"


def test_pixels_are_those_of_the_renderer_up_to_jpeg(folder, layout):
    x, y, size = 400, 300, 256  # across the border of four tiles
    classes = pixel_classes(layout, x, y, size, size, PATCH, 3)
    assert len(np.unique(classes)) > 1
    expected = render(x, y, size, size, classes, stain=STAIN, seed=3).astype(float)
    with openslide.OpenSlide(str(folder / "slides" / "P-001.tiff")) as slide:
        found = np.asarray(slide.read_region((x, y), 0, (size, size)).convert("RGB")).astype(float)
        below = np.asarray(slide.read_region((x, y), 1, (size // 4, size // 4)).convert("RGB")).astype(float)
    assert np.abs(found - expected).mean() < 6
    assert np.abs(found.mean((0, 1)) - expected.mean((0, 1))).max() < 1.5  # colours are not swapped
    means = expected.reshape(size // 4, 4, size // 4, 4, 3).mean((1, 3))
    exact = np.abs(below - means).mean()
    assert exact < 10
    for shift in (np.roll(means, 1, 0), np.roll(means, 1, 1)):  # level 1 lies where it should, to the pixel
        assert exact < 0.6 * np.abs(below - shift).mean()


def test_truth_agrees_with_the_layout(folder, layout):
    truth = np.asarray(Image.open(folder / "truth" / "P-001.png"))
    record = json.loads((folder / "truth" / "P-001.json").read_text())
    assert truth.shape == layout.shape
    assert truth.dtype == np.uint8
    assert (truth == layout.classes).mean() >= 0.95
    assert (truth == 9).any()
    assert (record["format"], record["version"]) == ("abbe-truth", 2)
    assert record["classes"] == list(TISSUE_CLASSES)
    assert (record["shape"], record["patch_size"], record["mpp"]) == ([16, 17], PATCH, 0.5)
    assert record["counts"] == {
        name: int((truth == number).sum()) for number, name in enumerate(TISSUE_CLASSES) if (truth == number).any()
    }


def test_truth_is_the_majority_of_the_pixels(folder, layout):
    truth = np.asarray(Image.open(folder / "truth" / "P-001.png"))
    purity = json.loads((folder / "truth" / "P-001.json").read_text())["purity"]
    pixels = pixel_classes(layout, 0, 0, 17 * PATCH, 16 * PATCH, PATCH, 3).reshape(16, PATCH, 17, PATCH)
    for row in range(16):
        for column in range(17):
            counts = np.bincount(pixels[row, :, column].ravel(), minlength=256)
            assert counts[truth[row, column]] == counts.max()
            assert purity[row][column] == pytest.approx(counts.max() / PATCH**2, abs=1e-4)


def test_all_files_are_signed(folder):
    for name in ("slides/P-001.tiff", "truth/P-001.png", "truth/P-001.json"):
        assert is_done(folder / name)
    assert read_sidecar(folder / "slides" / "P-001.tiff")["format"] == "phantom-slide"
    assert not list(folder.rglob("*.tmp*"))


def test_same_arguments_give_the_same_bytes(folder, layout, tmp_path):
    write_phantom_slide(tmp_path, "P-001", layout, stain=STAIN, seed=3, patch_size=PATCH)
    for name in ("slides/P-001.tiff", "truth/P-001.png", "truth/P-001.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_levels_two_apart_of_a_raster_that_fills_no_tile(tmp_path):
    layout = Layout(np.array([[2, 2, GLASS], [2, 5, GLASS]], np.uint8))
    path = write_phantom_slide(tmp_path, "small", layout, stain=STAIN, seed=1, patch_size=300, factor=2)
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.level_dimensions == ((900, 600), (450, 300), (225, 150))
        right = np.asarray(slide.read_region((820, 0), 0, (80, 600)).convert("RGB"))
    assert right.mean() > 235


def test_level_zero_is_never_held_whole(layout, monkeypatch, tmp_path):
    largest = 0
    concatenate = np.concatenate

    def spy(arrays, **kwargs):
        nonlocal largest
        out = concatenate(arrays, **kwargs)
        largest = max(largest, out.shape[0])
        return out

    monkeypatch.setattr(phantom_slides.np, "concatenate", spy)
    write_phantom_slide(tmp_path, "strip", layout, stain=STAIN, seed=3, patch_size=PATCH)
    assert 0 < largest <= phantom_slides.TILE


@pytest.mark.parametrize(
    ("slide_id", "kwargs", "words"),
    [
        ("a/b", {}, "'a/b'"),
        ("", {}, "plain file name"),
        ("..", {}, "plain file name"),
        ("a", {"factor": 3}, "got 3"),
        ("a", {"patch_size": 4}, "too few"),
    ],
)
def test_bad_arguments_are_refused_and_leave_nothing(slide_id, kwargs, words, tmp_path):
    layout = Layout(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=words):
        write_phantom_slide(tmp_path, slide_id, layout, stain=STAIN, seed=0, **kwargs)
    assert not list(tmp_path.iterdir())
