import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abbe.errors import SlideError
from abbe.slides.tiling import plan_tiles, slide_mpp, tissue_share


def plan(size=(4096, 2048), mpp=0.5, downsamples=(1.0,), *, target=0.5, patch=256, overlap=0, mask=None, **options):
    mask = np.ones((-(-size[1] // 16), -(-size[0] // 16)), bool) if mask is None else mask
    return plan_tiles(
        size, mpp, downsamples, target_mpp=target, patch_size=patch, overlap=overlap, mask=mask, mask_downsample=16.0,
        **options,
    )  # fmt: skip


def test_a_slide_at_the_target_is_read_as_it_is():
    tiles = plan()
    assert (tiles.level, tiles.read_size, tiles.patch_size_level0, tiles.stride_level0) == (0, 256, 256, 256)
    assert tiles.coords.dtype == np.int64
    assert len(tiles.coords) == 16 * 8
    assert tiles.coords[:3].tolist() == [[0, 0], [256, 0], [512, 0]]  # raster order
    assert tiles.coords[-1].tolist() == [4096 - 256, 2048 - 256]


@pytest.mark.parametrize(
    ("mpp", "downsamples", "level", "read_size", "size"),
    [
        (0.499, (1.0,), 0, 256, 256),  # within 5 %: no resampling
        (0.524, (1.0,), 0, 256, 256),
        (0.476, (1.0,), 0, 256, 256),
        (0.25, (1.0, 2.0, 4.0), 1, 256, 512),
        (0.2527, (1.0, 4.0, 16.0), 0, 507, 507),  # 40x without a 20x level: the next finer one, resized
        (0.25, (1.0, 2.0, 2.1, 8.0), 2, 256, 256 * 2.1),  # the coarsest within the tolerance
        (0.1, (1.0, 2.0, 4.0), 2, 320, 1280),
        (0.25, (1.0, 2.0005), 1, 256, 512.128),
    ],
)
def test_levels(mpp, downsamples, level, read_size, size):
    tiles = plan(mpp=mpp, downsamples=downsamples)
    assert (tiles.level, tiles.read_size) == (level, read_size)
    assert tiles.patch_size_level0 == pytest.approx(size)


def test_patches_are_never_enlarged():
    with pytest.raises(SlideError, match=r"geometry: the slide has 0\.53 .* --mpp 0\.53"):
        plan(mpp=0.53)


def test_overlap_shortens_the_step():
    tiles = plan(overlap=64, mpp=0.25, downsamples=(1.0, 2.0))
    assert tiles.stride_level0 == 384
    assert np.unique(np.diff(np.unique(tiles.coords[:, 0]))).tolist() == [384]


def test_a_slide_smaller_than_a_patch_has_none():
    assert plan(size=(255, 3000)).coords.shape == (0, 2)


def test_only_patches_with_enough_tissue():
    mask = np.zeros((128, 256), bool)
    mask[:16, :22] = True  # the first patch wholly, three eighths of the next
    mask[32:48, 0:4] = True  # a quarter of another
    assert plan(mask=mask).coords.tolist() == [[0, 0], [256, 0]]
    assert plan(mask=mask, min_tissue=0.5).coords.tolist() == [[0, 0]]


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(100, 5000), st.integers(100, 5000)),
    mpp=st.floats(0.1, 0.52),
    overlap=st.integers(0, 200),
)
def test_patches_lie_inside_and_apart(size, mpp, overlap):
    tiles = plan(size=size, mpp=mpp, overlap=overlap)
    assert (tiles.coords >= 0).all()
    assert (tiles.coords + tiles.patch_size_level0 <= np.array(size) + 1e-3).all()
    assert len(np.unique(tiles.coords, axis=0)) == len(tiles.coords)
    for axis in (0, 1):
        steps = np.diff(np.unique(tiles.coords[:, axis]))
        assert (np.abs(steps - tiles.stride_level0) <= 1).all()


@pytest.mark.parametrize(
    ("x", "y", "override", "mpp"),
    [("0.25", "0.25", None, 0.25), ("0.25", "0.252", None, 0.251), (None, None, 0.5, 0.5), ("500", "500", 0.5, 0.5)],
)
def test_slide_mpp(x, y, override, mpp):
    assert slide_mpp(x, y, override) == pytest.approx(mpp)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (None, None, "does not state"),
        ("0.5", None, "does not state"),
        ("352.778", "352.778", r"352\.778 µm per pixel, outside"),
        ("0", "0", "is 0 µm"),
        ("nan", "nan", "is nan"),
        ("0.25", "0.5", "not square"),
        ("a", "b", "not a number"),
    ],
)
def test_mpp_is_never_guessed(x, y, why):
    with pytest.raises(SlideError, match=rf"geometry: .*{why}.*--override-mpp"):
        slide_mpp(x, y, None)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    seed=st.integers(0, 1000),
    downsample=st.sampled_from([1.0, 7.5, 16.0, 31.9]),
    size=st.floats(1.0, 400.0),
    corners=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), min_size=1, max_size=5),
)
def test_tissue_share_is_a_count_of_the_mask_pixels_touched(shape, seed, downsample, size, corners):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    expected = []
    for x, y in corners:
        touched = [
            mask[row, column]
            for row in range(shape[0])
            for column in range(shape[1])
            if row * downsample < y + size and (row + 1) * downsample > y
            if column * downsample < x + size and (column + 1) * downsample > x
        ]
        expected.append(sum(touched) / max(len(touched), 1))
    found = tissue_share(np.array(corners), size, mask, downsample)
    assert found == pytest.approx(expected, abs=1e-12)
