from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from scipy import linalg

from abbe.slides.patch_encoders.texture import (
    _DENSITY,
    CHANNELS,
    LIMIT,
    NOISE,
    WIDTH,
    TextureEncoder,
    _channels,
    _pyramid,
    _unmix,
)
from abbe.slides.patch_encoders.texture_base import SCALES

Patches = npt.NDArray[np.uint8]

ENCODE = TextureEncoder()
HEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])


def tissue(
    *, seed: int = 0, nuclei: int = 60, radius: float = 5.0, stain: float = 0.5, lumen: float = 0.0, side: int = 128
) -> Patches:
    """One synthetic patch [1, side, side, 3]: round nuclei of optical density `stain` on wavy eosin, a white disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    dense = np.zeros((side, side))
    for cy, cx in rng.uniform(0, side, (nuclei, 2)):
        dense = np.maximum(dense, (y - cy) ** 2 + (x - cx) ** 2 <= radius**2)
    pink = 0.4 + 0.05 * np.sin(y / 7 + 2 * np.sin(x / 11))
    density: npt.NDArray[np.float64] = stain * dense[..., None] * HEMATOXYLIN + pink[..., None] * EOSIN
    density = density + rng.normal(0, 0.01, (side, side, 1))
    density[(y - side / 2) ** 2 + (x - side / 2) ** 2 < lumen**2] = 0
    patches: Patches = np.clip(256 * 10**-density - 1, 0, 255).round().astype(np.uint8)[None]
    return patches


def feature(patches: Patches, name: str) -> float:
    return float(ENCODE(patches)[0, ENCODE.feature_names.index(name)])


def test_names_are_unique_and_as_many_as_the_width() -> None:
    names = ENCODE.feature_names
    assert len(names) == len(set(names)) == WIDTH == ENCODE.width
    assert {name.split("/")[0] for name in names} == {"stain", "covariance", "nuclei", "lumen"}


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 200), (101, 64), (224, 224)])
def test_any_size_gives_finite_float32(size: tuple[int, int]) -> None:
    patches = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    out = ENCODE(patches)
    assert out.shape == (2, WIDTH)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert not np.array_equal(out[0], out[1])


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (230, 160, 200), (0, 0, 255), (255, 0, 0)])
def test_flat_patches_are_finite_bounded_and_have_no_edges(colour: tuple[int, int, int]) -> None:
    patches = np.broadcast_to(np.array(colour, np.uint8), (1, 50, 70, 3))
    with np.errstate(all="raise", under="ignore"):
        out = ENCODE(patches)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= LIMIT
    floor = ENCODE(np.full((1, 50, 70, 3), 255, np.uint8))
    edges = [i for i, name in enumerate(ENCODE.feature_names) if name.startswith("covariance/")]
    np.testing.assert_allclose(out[0, edges], floor[0, edges], atol=1e-3)


def test_extremes_are_finite_and_bounded() -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    half = np.where(np.arange(64) < 32, 0, 255) * np.ones((64, 1))
    dot = np.zeros((64, 64))
    dot[20, 30] = 255
    patches = np.stack([np.repeat(image[..., None], 3, axis=2) for image in (checks, half, dot)]).astype(np.uint8)
    out = ENCODE(patches)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= LIMIT


def test_a_patch_has_the_same_bits_alone_in_a_batch_and_in_any_memory_layout() -> None:
    patches = np.concatenate([tissue(seed=s, nuclei=20 + 20 * s) for s in range(4)])
    batch = ENCODE(patches)
    for i in range(4):
        assert ENCODE(patches[i : i + 1]).tobytes() == batch[i].tobytes()
    assert ENCODE(patches[::-1])[::-1].tobytes() == batch.tobytes()
    assert ENCODE(np.asfortranarray(patches)).tobytes() == batch.tobytes()
    assert len({row.tobytes() for row in batch}) == 4


def test_threads_agree_with_one_thread() -> None:
    patches = [tissue(seed=s, side=64) for s in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ENCODE, patches))
    for patch, out in zip(patches, together, strict=True):
        assert TextureEncoder()(patch).tobytes() == out.tobytes()


def test_input_is_not_changed_and_an_empty_batch_is_allowed() -> None:
    patches = tissue()
    before = patches.copy()
    patches.flags.writeable = False
    ENCODE(patches)
    np.testing.assert_array_equal(patches, before)
    empty = ENCODE(np.zeros((0, 64, 64, 3), np.uint8))
    assert empty.shape == (0, WIDTH)
    assert empty.dtype == np.float32


@pytest.mark.parametrize("side", [128, 125])
def test_flips_and_quarter_turns_move_features_far_less_than_another_tissue_does(side: int) -> None:
    one = tissue(seed=3, side=side)
    base = ENCODE(one)
    another = np.abs(ENCODE(tissue(seed=3, side=side, radius=7, nuclei=30, lumen=20)) - base).mean()
    turned = [
        one[:, ::-1],
        one[:, :, ::-1],
        np.rot90(one, 1, (1, 2)),
        np.rot90(one, 2, (1, 2)),
        one.transpose(0, 2, 1, 3),
    ]
    for patches in turned:
        assert not np.array_equal(patches, one)
        move = np.abs(ENCODE(patches) - base)
        # Halving leaves out an odd last row or column, which differs after a flip.
        assert move.mean() < another * (0.005 if side % 8 == 0 else 0.2)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("stain/hematoxylin/p95", tissue(stain=0.4), tissue(stain=0.7)),
        ("nuclei/chromatin/p50", tissue(stain=0.4), tissue(stain=0.7)),
        ("nuclei/log_area/p50", tissue(radius=4, nuclei=20), tissue(radius=8, nuclei=20)),
        ("nuclei/density", tissue(nuclei=10), tissue(nuclei=60)),
        ("nuclei/area_fraction", tissue(nuclei=10), tissue(nuclei=60)),
        ("lumen/fraction", tissue(), tissue(lumen=30)),
        ("lumen/log_area", tissue(lumen=10), tissue(lumen=30)),
        ("covariance/edge0_hematoxylin", tissue(nuclei=5), tissue(nuclei=60)),
    ],
)
def test_a_change_of_tissue_moves_the_feature_named_for_it(name: str, low: Patches, high: Patches) -> None:
    assert feature(high, name) > feature(low, name) + 0.3


def test_nuclear_size_and_density_are_measured() -> None:
    """Nuclei on a grid: their number and area are known."""
    y, x = np.mgrid[:128, :128]
    disc = (y % 32 - 15.5) ** 2 + (x % 32 - 15.5) ** 2 <= 6**2
    density = 0.6 * disc[..., None] * HEMATOXYLIN + 0.1 * EOSIN
    patches = (256 * 10**-density - 1).round().astype(np.uint8)[None]

    def raw(name: str, kind: str) -> float:
        centre, spread = SCALES[kind]
        return float(np.exp(feature(patches, name) * spread + centre))

    assert raw("nuclei/density", "count") - 1 == pytest.approx(16 * 1e4 / 128**2, rel=1e-3)
    assert raw("nuclei/log_area/p50", "size") == pytest.approx(np.pi * 6**2, rel=0.2)
    assert raw("nuclei/log_gap/p50", "size") - 1 == pytest.approx(32, rel=1e-3)
    assert feature(patches, "nuclei/regularity") > feature(tissue(nuclei=60), "nuclei/regularity") + 0.5


def test_covariances_are_the_logarithm_of_the_covariance_of_the_maps() -> None:
    """Against a slow matrix logarithm, on patches whose sides do not divide by 8."""
    for side in (64, 75):
        patch = tissue(side=side)[0]
        stains = _unmix(_DENSITY[patch.transpose(2, 0, 1)])
        maps = _channels(stains, _pyramid(stains[:2]))
        assert maps.shape == (len(CHANNELS), side // 8 * 4, side // 8 * 4)
        expected = linalg.logm(
            np.cov(maps.reshape(len(CHANNELS), -1).astype(np.float64), bias=True) + NOISE * np.eye(19)
        )
        centre, spread = SCALES["covariance"]
        found = feature(patch[None], "covariance/edge0_hematoxylin*blob1_eosin") * spread + centre
        i, j = CHANNELS.index("edge0_hematoxylin"), CHANNELS.index("blob1_eosin")
        assert found == pytest.approx(expected[i, j], abs=1e-3)
        centre, spread = SCALES["variance"]
        i2 = CHANNELS.index("edge2_eosin")
        found = feature(patch[None], "covariance/edge2_eosin") * spread + centre
        assert found == pytest.approx(expected[i2, i2], abs=1e-3)


def test_structures_show_at_their_own_scale() -> None:
    fine, coarse = tissue(radius=2, nuclei=150), tissue(radius=12, nuclei=10)
    assert feature(fine, "covariance/blob1_hematoxylin") > feature(coarse, "covariance/blob1_hematoxylin") + 0.3
    assert feature(fine, "covariance/blob3_hematoxylin") < feature(coarse, "covariance/blob3_hematoxylin") - 0.3


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "float32"),
        (np.zeros((64, 64, 3), np.uint8), r"\(64, 64, 3\)"),
        (np.zeros((1, 3, 64, 64), np.uint8), r"\(1, 3, 64, 64\)"),
        (np.zeros((1, 64, 64, 4), np.uint8), r"\(1, 64, 64, 4\)"),
        (np.zeros((1, 31, 64, 3), np.uint8), r"\(1, 31, 64, 3\).*32"),
    ],
)
def test_a_wrong_input_is_refused_by_name(patches: npt.NDArray[np.generic], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ENCODE(patches)  # type: ignore[arg-type]
