"""A patch of the bank has been through what a patch of a slide has been through."""

from __future__ import annotations

import numpy as np
import openslide
import pytest
from PIL import Image

from abbe.phantom.layout import Layout
from abbe.phantom.render.capture import MCU, captured, through_jpeg
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import TISSUE_CLASSES, render, site_stain

LYMPHOCYTES = TISSUE_CLASSES.index("lymphocytes")


@pytest.mark.parametrize("setting", range(3))
def test_a_patch_is_bit_for_bit_what_openslide_reads_from_a_slide(setting, tmp_path):
    """Any phase of the JPEG grid, each of the three subsamplings."""
    stain = site_stain(0, setting, 0)
    layout = Layout(np.full((2, 2), LYMPHOCYTES, np.uint8))
    path = write_phantom_slide(tmp_path, "s", layout, stain=stain, seed=3)
    with openslide.OpenSlide(str(path)) as slide:
        for x, y in ((133, 153), (192, 224)):  # away from the ragged edge of the tissue
            found = np.asarray(slide.read_region((x, y), 0, (128, 128)).convert("RGB"))
            phase = (x % MCU, y % MCU)
            expected = captured(x, y, 128, LYMPHOCYTES, phase=phase, stain=stain, seed=3)
            inner = np.s_[1:-1, 1:-1]  # at the edge the interpolation of chroma misses its neighbours
            np.testing.assert_array_equal(found[inner], expected[inner])
            assert (expected != render(x, y, 128, 128, LYMPHOCYTES, stain=stain, seed=3)).mean() > 0.3


def test_the_phase_moves_the_grid_and_not_the_tissue():
    stain = site_stain(0, 0, 0)
    original = render(1000, 500, 64, 64, LYMPHOCYTES, stain=stain, seed=1).astype(float)
    patches = [captured(1000, 500, 64, LYMPHOCYTES, phase=p, stain=stain, seed=1) for p in ((0, 0), (5, 0), (0, 9))]
    assert all(patch.shape == (64, 64, 3) for patch in patches)
    assert (patches[0] != patches[1]).any()
    assert (patches[0] != patches[2]).any()
    for patch in patches:
        lost = np.abs(patch - original).mean()
        assert all(lost < np.abs(patch - np.roll(original, 1, axis)).mean() for axis in (0, 1))


def test_jpeg_keeps_colours_and_loses_more_at_a_lower_quality(tmp_path):
    stains = {stain.quality: stain for stain in (site_stain(0, setting, 0) for setting in range(3))}
    pixels = render(0, 0, 128, 128, LYMPHOCYTES, stain=site_stain(0, 0, 0), seed=1)
    lost = {}
    for quality, stain in stains.items():
        after = through_jpeg(pixels, stain).astype(float)
        lost[quality] = np.abs(after - pixels).mean()
        assert np.abs(after.mean((0, 1)) - pixels.mean((0, 1))).max() < 2
        Image.fromarray(pixels).save(tmp_path / "p.jpg", quality=quality, subsampling=stain.subsampling)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.jpg")), after)
    assert lost[max(lost)] < lost[min(lost)]


@pytest.mark.parametrize("site", range(5))
def test_the_settings_of_a_site_differ_in_optics_and_jpeg(site):
    stains = [site_stain(site, setting, 7) for setting in range(3)]
    assert {stain.subsampling for stain in stains} == {"4:4:4", "4:2:2", "4:2:0"}
    low, medium, high = sorted(stain.quality for stain in stains)
    assert 60 <= low <= 71 < medium <= 83 < high <= 95
    assert len({stain.blur for stain in stains}) == len({stain.noise for stain in stains}) == 3
