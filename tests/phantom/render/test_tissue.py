"""The procedural renderer: seamless, deterministic, and classes look like their names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abbe.phantom.render.lattice import Lattice, warped_cells
from abbe.phantom.render.noise import Region, directions, fbm, turns, unit, value_noise
from abbe.phantom.render.tissue import GLASS, TISSUE_CLASSES, Stain, render, site_stain

STAIN = Stain()


def index(name: str) -> int:
    return TISSUE_CLASSES.index(name)


@pytest.mark.parametrize("number", range(len(TISSUE_CLASSES)), ids=TISSUE_CLASSES)
def test_tiles_meet_bit_for_bit(number):
    x0, y0 = -137, 70_003  # negative, odd, and far from the origin
    whole = render(x0, y0, 230, 190, number, stain=STAIN, seed=5)
    tiled = np.empty_like(whole)
    for y in (0, 61, 128):
        for x in (0, 17, 150):
            height = {0: 61, 61: 67, 128: 62}[y]
            width = {0: 17, 17: 133, 150: 80}[x]
            tile = render(x0 + x, y0 + y, width, height, number, stain=STAIN, seed=5)
            tiled[y : y + height, x : x + width] = tile
    np.testing.assert_array_equal(tiled, whole)


def test_tiles_of_a_class_map_meet_bit_for_bit():
    rng = np.random.default_rng(0)
    names = ("stroma", "gland", "tumour_a1", "fat")
    coarse = rng.choice([*map(index, names), GLASS], (5, 5)).astype(np.uint8)
    classes = np.kron(coarse, np.ones((40, 40), np.uint8))
    whole = render(1000, -50, 200, 200, classes, stain=STAIN, seed=2)
    left = render(1000, -50, 90, 200, classes[:, :90], stain=STAIN, seed=2)
    right = render(1090, -50, 110, 200, classes[:, 90:], stain=STAIN, seed=2)
    np.testing.assert_array_equal(np.concatenate([left, right], axis=1), whole)


def test_a_class_map_shows_each_class_where_it_is():
    classes = np.full((64, 96), index("muscle"), np.uint8)
    classes[:, 48:] = GLASS
    pixels = render(0, 0, 96, 64, classes, stain=STAIN, seed=1)
    alone = render(0, 0, 96, 64, index("muscle"), stain=STAIN, seed=1)
    np.testing.assert_array_equal(pixels[:, :48], alone[:, :48])
    assert np.abs(pixels[:, 48:].mean((0, 1)) - np.array(STAIN.background)).max() < 1


def test_rendering_repeats_and_depends_on_seed_place_stain_and_class():
    def patch(x0=0, number=0, seed=1, stain=STAIN):
        return render(x0, 0, 128, 128, number, stain=stain, seed=seed)

    reference = patch()
    np.testing.assert_array_equal(reference, patch())
    for other in (patch(seed=2), patch(x0=1000), patch(number=1), patch(stain=site_stain(1, 0, 0))):
        assert (reference != other).mean() > 0.5


def test_shift_of_the_window_shifts_the_pixels():
    number = index("tumour_b2")
    a = render(0, 0, 100, 80, number, stain=STAIN, seed=9)
    b = render(30, 20, 70, 60, number, stain=STAIN, seed=9)
    np.testing.assert_array_equal(a[20:, 30:], b)


def statistics(name: str) -> dict[str, float]:
    pixels = np.concatenate(
        [render(4000 * i, 900 * i, 256, 256, index(name), stain=STAIN, seed=3) for i in range(3)]
    ).astype(float)
    grey = pixels.mean(2)
    return {
        "grey": grey.mean(),
        "open": (grey > 225).mean(),  # lumens, fat, clefts
        "nuclei": (pixels[:, :, 0] < 130).mean(),
        "pink": (pixels[:, :, 0] - pixels[:, :, 1]).mean(),
    }


@pytest.fixture(scope="module")
def look() -> dict[str, dict[str, float]]:
    return {name: statistics(name) for name in TISSUE_CLASSES}


@pytest.mark.slow
def test_classes_look_as_their_names_say(look):
    assert look["fat"]["open"] > 0.7
    assert max(values["open"] for name, values in look.items() if name != "fat") < 0.5
    assert min(look, key=lambda name: look[name]["grey"]) == "lymphocytes"
    assert look["lymphocytes"]["nuclei"] > 0.3
    assert look["muscle"]["nuclei"] < 0.08
    assert look["necrosis"]["nuclei"] < 0.08
    assert look["muscle"]["pink"] > look["stroma"]["pink"] > look["lymphocytes"]["pink"]
    assert look["gland"]["open"] > 0.08
    assert min(look[f"tumour_{kind}{grade}"]["nuclei"] for kind in "ab" for grade in (1, 2, 3)) > 0.1


def test_lumens_fall_with_grade_in_a_and_are_a_mark_of_it(look):
    assert look["tumour_a1"]["open"] > 2 * look["tumour_a3"]["open"]
    assert look["tumour_a1"]["open"] > 3 * look["tumour_b1"]["open"]


def test_nuclei_grow_and_vary_more_with_grade():
    from skimage.measure import label, regionprops

    def sizes(name):
        pixels = np.concatenate([render(5000 * i, 0, 256, 256, index(name), stain=STAIN, seed=1) for i in range(3)])
        areas = np.array([region.area for region in regionprops(label(pixels[:, :, 0] < 135))])
        return np.sqrt(areas[areas > 40])

    for kind in "ab":
        first, third = sizes(f"tumour_{kind}1"), sizes(f"tumour_{kind}3")
        assert np.median(third) > 1.15 * np.median(first)
        assert third.std() > 1.2 * first.std()


def test_sites_differ_more_than_the_settings_of_one_site():
    def tone(stain):
        return np.array([*stain.haematoxylin, *stain.eosin])

    sites = [site_stain(site, 0, 4) for site in range(6)]
    assert len({(s.blur, s.noise, s.density) for s in sites}) == 6
    np.testing.assert_array_equal(tone(sites[0]), tone(site_stain(0, 2, 4)))
    assert min(np.abs(tone(a) - tone(b)).max() for a in sites for b in sites if a is not b) > 0.005
    assert len({site_stain(0, setting, 4).strengths for setting in range(3)}) == 3
    assert site_stain(3, 1, 4) == site_stain(3, 1, 4) != site_stain(3, 1, 5)
    for stain in sites:
        assert np.linalg.norm(stain.haematoxylin) == pytest.approx(1, abs=1e-5)
        assert np.linalg.norm(stain.eosin) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"width": 0}, "width and height"),
        ({"classes": 12}, "got 12"),
        ({"classes": -1}, "got -1"),
        ({"classes": np.zeros((3, 4), np.uint8)}, r"shape \(16, 16\)"),
    ],
)
def test_bad_arguments_are_refused(kwargs, words):
    arguments = {"x0": 0, "y0": 0, "width": 16, "height": 16, "classes": 0, **kwargs}
    with pytest.raises(ValueError, match=words):
        render(**arguments, stain=STAIN, seed=0)


def test_bad_sites_are_refused():
    with pytest.raises(ValueError, match="setting must be 0, 1 or 2, got 3"):
        site_stain(0, 3, 0)
    with pytest.raises(ValueError, match="got -1"):
        site_stain(-1, 0, 0)


@settings(max_examples=25, deadline=None)
@given(
    x=st.integers(-(10**7), 10**7),
    y=st.integers(-(10**7), 10**7),
    cell=st.integers(2, 90),
    seed=st.integers(0, 2**32 - 1),
)
def test_noise_is_seamless_anywhere(x, y, cell, seed):
    whole = fbm(Region(x, y, 60, 50), cell, seed)
    part = fbm(Region(x + 13, y + 7, 31, 29), cell, seed)
    np.testing.assert_array_equal(whole[7:36, 13:44], part)


def test_noise_is_standardised_and_smooth():
    field = value_noise(Region(0, 0, 1500, 1500), 12, 3)
    assert abs(field.mean()) < 0.05
    assert field.std() == pytest.approx(1, abs=0.08)
    assert np.abs(np.diff(field, axis=0)).max() < 0.6


def test_directions_are_unit_vectors():
    ux, uy = directions(Region(-40, 99, 120, 80), 60, 1, 0.3)
    np.testing.assert_allclose(ux * ux + uy * uy, 1, atol=1e-3)


def test_turns_is_the_angle():
    angle = np.linspace(0.001, 0.999, 997)
    found = turns(*(f(2 * np.pi * angle).astype(np.float32) for f in (np.cos, np.sin)))
    np.testing.assert_allclose(found, angle, atol=1.5e-3)


def test_ellipses_agree_with_every_object_tried():
    region = Region(-33, 1007, 50, 41)
    lattice = Lattice.over(region, 14, 8, 0.4)
    a, b = 4 + 3 * lattice.u(3), 3 + lattice.u(4)
    angle = np.pi * lattice.u(5)
    present = lattice.u(6) < 0.7
    q, who = lattice.ellipses(a, b, np.cos(angle), np.sin(angle), present)
    y, x = np.mgrid[region.y0 : region.y0 + region.height, region.x0 : region.x0 + region.width]
    cx = (lattice.ix * 14 + 7 + lattice.jx)[..., None, None]
    cy = (lattice.iy * 14 + 7 + lattice.jy)[..., None, None]
    c, s = np.cos(angle)[..., None, None], np.sin(angle)[..., None, None]
    u, v = c * (x - cx) + s * (y - cy), -s * (x - cx) + c * (y - cy)
    every = (u / a[..., None, None]) ** 2 + (v / b[..., None, None]) ** 2
    every = np.where(present[..., None, None], every, np.inf).reshape(-1, *q.shape)
    inside = every.min(0) < 1  # objects reach no further than the four cells looked at, so insides must agree
    assert 0.1 < inside.mean() < 0.9
    np.testing.assert_array_equal(q < 1, inside)
    np.testing.assert_allclose(q[inside], every.min(0)[inside], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(who[inside], every.argmin(0)[inside])


def test_warped_cells_without_a_warp_are_a_voronoi_tessellation():
    region = Region(500, -77, 60, 45)
    zero = np.zeros((45, 60), np.float32)
    cells = warped_cells(region, (zero, zero), 30, 2, 0.35)
    lattice = Lattice.over(region.grow(30), 30, 2, 0.35)
    y, x = np.mgrid[region.y0 : region.y0 + 45, region.x0 : region.x0 + 60]
    dx = x - (lattice.ix * 30 + 15 + lattice.jx).reshape(-1, 1, 1)
    dy = y - (lattice.iy * 30 + 15 + lattice.jy).reshape(-1, 1, 1)
    distance = np.sqrt(dx * dx + dy * dy)
    np.testing.assert_allclose(cells.f1, distance.min(0), atol=1e-3)
    np.testing.assert_array_equal(cells.h, lattice.h.ravel()[distance.argmin(0)])
    np.testing.assert_allclose(np.hypot(cells.dx, cells.dy), cells.f1, atol=1e-3)


def test_channels_of_a_hash_are_uniform_and_uncorrelated():
    h = Lattice.over(Region(0, 0, 3000, 3000), 10, 1).h
    draws = np.stack([unit(h, channel).ravel() for channel in range(5)])
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(1), 0.5, atol=0.01)
    assert np.abs(np.corrcoef(draws) - np.eye(5)).max() < 0.02
