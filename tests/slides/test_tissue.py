import numpy as np
import pytest
from PIL import Image

from abbe.slides.tissue import tissue_mask

GLASS = (244, 243, 245)
EOSIN, HAEMATOXYLIN = np.array([0.07, 0.35, 0.19]), np.array([0.45, 0.5, 0.3])  # optical densities, as cameras see them
INKS = {"red": (215, 30, 45), "green": (25, 120, 75), "blue": (40, 60, 170), "black": (28, 27, 30)}
MPP = 8.0


def canvas(glass=GLASS, side: int = 200) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.7, (side, side, 3))
    return np.clip(np.array(glass) + noise, 0, 255).astype(np.uint8)


def disk(side: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def stain(image: np.ndarray, where: np.ndarray, *, strength: float = 1.0, glass=GLASS) -> np.ndarray:
    nuclei = np.random.default_rng(1).random(where.shape) ** 2
    density = strength * (EOSIN * (1 - nuclei[..., None]) + HAEMATOXYLIN * nuclei[..., None])
    out = image.copy()
    out[where] = (np.array(glass) * 10**-density).astype(np.uint8)[where]
    return out


def stroke(image: np.ndarray, colour, *, width: int = 30) -> np.ndarray:
    out = image.copy()
    out[:, 20 : 20 + width] = colour
    return out


def test_the_mask_is_the_tissue():
    where = disk(200, 110, 100, 60)
    tissue = tissue_mask(stain(canvas(), where), MPP)
    assert tissue.reason is None
    assert tissue.warnings == ()
    assert np.abs(np.array(tissue.glass) - GLASS).max() <= 1
    assert (tissue.mask & ~where).sum() < 0.03 * where.sum()
    assert (where & ~tissue.mask).sum() < 0.01 * where.sum()


@pytest.mark.parametrize("glass", [(255, 255, 255), (225, 222, 224), (238, 230, 236), (200, 198, 190)])
def test_the_lamp_does_not_matter(glass):
    where = disk(200, 110, 100, 60)
    tissue = tissue_mask(stain(canvas(glass), where, glass=glass), MPP)
    assert (tissue.mask ^ where).sum() < 0.05 * where.sum()
    assert not tissue.warnings


def test_pale_tissue_is_kept():
    where = disk(200, 110, 100, 60)
    assert (where & ~tissue_mask(stain(canvas(), where, strength=0.35), MPP).mask).sum() < 0.05 * where.sum()


def test_fat_is_kept_though_only_specks_of_its_walls_are_seen():
    fat, dense = disk(200, 120, 100, 60), disk(200, 25, 100, 20)
    walls = fat & (np.random.default_rng(2).random(fat.shape) < 0.22)
    mask = tissue_mask(stain(stain(canvas(), walls, strength=0.17), dense), MPP).mask
    assert (fat & ~mask).sum() < 0.2 * fat.sum()
    assert (mask & ~fat & ~dense).sum() < 0.02 * fat.sum()


def test_what_a_scanner_left_out_is_whiter_than_glass():
    image = canvas((242, 237, 240))
    image[:, :80] = 255
    image[150:, :] = 255
    assert not tissue_mask(image, MPP).mask.any()


@pytest.mark.parametrize("glass", [(255, 255, 255), GLASS, (215, 214, 216)])
def test_blank_glass_has_no_tissue(glass):
    tissue = tissue_mask(canvas(glass), MPP)
    assert not tissue.mask.any()
    assert tissue.reason == "no H&E tissue: nothing stained on the glass"


@pytest.mark.parametrize("name", INKS)
def test_ink_alone_is_no_tissue(name):
    tissue = tissue_mask(stroke(canvas(), INKS[name]), MPP)
    assert not tissue.mask.any()
    assert "ink" in (tissue.reason or "")


@pytest.mark.parametrize("name", INKS)
def test_ink_beside_tissue_is_left_out_and_the_tissue_kept(name):
    where = disk(200, 130, 100, 50)
    tissue = tissue_mask(stroke(stain(canvas(), where), INKS[name]), MPP)
    assert not tissue.mask[:, 20:50].any()
    assert (where & ~tissue.mask).sum() < 0.02 * where.sum()


def test_dust_and_shadows_are_grey_and_no_tissue():
    image = canvas()
    image[50:120, 50:120] = (150, 150, 152)
    assert not tissue_mask(image, MPP).mask.any()


def test_specks_go_and_small_holes_are_filled():
    where = disk(200, 110, 100, 60)
    speck, hole = disk(200, 10, 10, 3), disk(200, 110, 100, 5)
    tissue = tissue_mask(stain(canvas(), (where | speck) & ~hole), MPP)
    assert not tissue.mask[speck].any()
    assert tissue.mask[hole].all()
    assert not tissue_mask(stain(canvas(), where & ~disk(200, 110, 100, 25)), MPP).mask[100, 110]


def test_tissue_that_fills_the_slide_without_any_glass():
    assert tissue_mask(stain(canvas(), np.ones((200, 200), bool)), MPP).mask.mean() > 0.99


def test_a_dark_background_is_fluorescence():
    image = np.zeros((200, 200, 3), np.uint8)
    image[disk(200, 100, 100, 40)] = (0, 0, 230)
    assert tissue_mask(image, MPP).reason == "dark background: looks like fluorescence, no H&E tissue"


def test_black_padding_around_a_bright_slide_is_not():
    image = stain(canvas(), disk(200, 150, 150, 30))
    image[:, :110] = 0
    tissue = tissue_mask(image, MPP)
    assert tissue.reason is None
    assert not tissue.mask[:, :110].any()


def test_a_strong_tint_of_the_glass_is_told():
    glass = (240, 128, 128)
    tissue = tissue_mask(stain(canvas(glass), disk(200, 110, 100, 60), glass=glass), MPP)
    assert tissue.warnings == ("background colour is 239,127,127: the colours in the file look wrong",)
    assert 0.2 < tissue.mask.mean() < 0.4


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2)])
def test_the_smallest_thumbnails(shape):
    assert not tissue_mask(np.full((*shape, 3), 244, np.uint8), MPP).mask.any()


def picture(path, reduce: int) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").reduce(reduce))


@pytest.mark.parametrize("name", ["no-tissue", "almost-white-1", "no-tissue-red-pen"])
def test_real_tiles_without_tissue(data, name):
    tissue = tissue_mask(picture(data / f"he_tiles/histolab_tiles/{name}.png", 8), MPP)
    assert not tissue.mask.any()
    assert ("ink" in (tissue.reason or "")) == ("pen" in name)


@pytest.mark.parametrize("name", ["low-nuclei-score-level0", "high-nuclei-score-level0"])  # the first is fat
def test_real_tiles_of_tissue(data, name):
    assert tissue_mask(picture(data / f"he_tiles/histolab_tiles/{name}.png", 16), MPP).mask.mean() > 0.95


def test_real_green_pen_over_tissue(data):
    mask = tissue_mask(picture(data / "he_tiles/histolab_thumbs/tcga-green-pen.png", 2), MPP).mask  # 316 × 377
    assert mask[:, 260:].mean() > 0.97
    assert mask[:110, :120].mean() > 0.9
    pen = np.array([[40, 185], [100, 160], [180, 90], [250, 110], [300, 110]])  # points on its middle line
    assert not mask[pen[:, 0], pen[:, 1]].any()
