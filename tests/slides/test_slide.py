"""The room as a whole: what is read is what OpenSlide reads, and damage, odd names and dead readers stay one row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from PIL import Image

from abbe.errors import SlideError
from abbe.phantom.layout import Layout
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import GLASS, site_stain
from abbe.slides import encode, reader, slide
from abbe.slides.encode import encode_slides
from abbe.slides.settings import EncodeSettings
from abbe.slides.slide import read_regions, read_slide, read_thumbnail
from abbe.store.bags import read_bag
from abbe.store.commit import is_done
from abbe.store.outcomes import exit_code

FEATURES = "20x_256px_0px_overlap/features_texture"
TILES = {"target_mpp": 0.5, "patch_size": 64, "overlap": 0, "override_mpp": None, "batch": 7}
Pixels = npt.NDArray[np.uint8]


def stained(height: int = 560, width: int = 600) -> Pixels:
    """Glass, its left half pink with some grain."""
    pixels = np.full((height, width, 3), 245, np.uint8)
    grain = np.random.default_rng(0).integers(0, 25, (height, width // 2, 1), dtype=np.uint8)
    pixels[:, : width // 2] = np.array([200, 100, 150], np.uint8) + grain
    return pixels


def write_tiff(path: Path, pixels: Pixels, **options: Any) -> Path:
    """A tiled TIFF of 0.5 µm per pixel: IFD first, tiles after it."""
    resolution: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", **{**resolution, **options})
    return path


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered slide of 1280 × 1024 pixels, 0.5 µm per pixel, levels 1, 4 and 16, glass around the tissue."""
    classes = np.full((4, 5), GLASS, np.uint8)
    classes[1:3, 1:4] = [[2, 5, 2], [9, 5, 2]]
    folder = tmp_path_factory.mktemp("phantom")
    return write_phantom_slide(folder, "P-1", Layout(classes), stain=site_stain(2, 1, 0), seed=3)


def direct(path: Path, corner: tuple[int, int], level: int, side: int) -> Pixels:
    """The same square by OpenSlide itself, over white."""
    with openslide.OpenSlide(path) as handle:
        region = handle.read_region(corner, level, (side, side))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", region.size, "white"), region))[..., :3]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process started from here, as it starts."""
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(slide.subprocess, "Popen", Popen)
    return started


# Reading agrees with OpenSlide.


@pytest.mark.parametrize(("size", "level"), [(256, 0), (1024, 1)])
def test_regions_are_those_of_openslide(phantom: Path, size: int, level: int) -> None:
    corners = [(256, 256), (300, 290), (0, 0)]
    found = read_regions(phantom, np.array(corners), size, side=256)
    assert found.shape == (3, 256, 256, 3)
    for corner, pixels in zip(corners, found, strict=True):
        assert np.array_equal(pixels, direct(phantom, corner, level, 256))
    assert found[0].std() > 5  # there is something to see


def test_regions_between_levels_are_scaled_down_from_the_finer_one(phantom: Path) -> None:
    (found,) = read_regions(phantom, np.array([(256, 256)]), 512, side=256)
    whole = direct(phantom, (256, 256), 0, 512).astype(float)
    means = whole.reshape(256, 2, 256, 2, 3).mean((1, 3))
    error = np.abs(found - means).mean()
    assert error < 4
    assert error < 0.7 * np.abs(np.roll(found, 1, 0) - means).mean()  # not a pixel off


@pytest.mark.parametrize("side", [80])
def test_thumbnails_are_means_of_what_openslide_reads(phantom: Path, side: int) -> None:
    pixels, downsample = read_thumbnail(phantom, side=side)
    assert pixels.shape == (side * 4 // 5, side, 3)
    assert downsample == pytest.approx(1280 / side)
    with openslide.OpenSlide(phantom) as handle:
        level = handle.get_best_level_for_downsample(1280 / side)
        image = handle.read_region((0, 0), level, handle.level_dimensions[level]).convert("RGB")
    assert np.array_equal(pixels, np.asarray(image))


def test_what_lies_outside_the_slide_is_white(phantom: Path) -> None:
    (corner,) = read_regions(phantom, np.array([(-100, -60)]), 256, side=256)
    outside = np.ones((256, 256), bool)
    outside[60:, 100:] = False
    assert (corner[outside] == 255).all()
    assert np.array_equal(corner[60:, 100:], direct(phantom, (0, 0), 0, 256)[:196, :156])
    assert (corner[~outside] < 255).any()  # glass is not white, so the two can be told apart
    (away,) = read_regions(phantom, np.array([(5000, 5000)]), 256, side=64)
    assert (away == 255).all()


def test_transparent_pixels_are_laid_over_white() -> None:
    class Half:
        """A slide whose right half was not scanned; where it half was, the colour shows half."""

        def read_region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
            pixels = np.zeros((*size[::-1], 4), np.uint8)
            pixels[:, :2] = (100, 50, 200, 255)
            pixels[:, 2] = (100, 50, 200, 128)
            return Image.fromarray(pixels)

    pixels = reader._read(Half(), (0, 0), 0, (4, 3))  # type: ignore[arg-type]
    assert pixels.shape == (3, 4, 3)
    assert (pixels[:, :2] == (100, 50, 200)).all()
    assert np.abs(pixels[:, 2].astype(int) - (177, 152, 227)).max() <= 1
    assert (pixels[:, 3] == 255).all()


def test_a_phantom_slide_encodes_where_its_tissue_is(phantom: Path, tmp_path: Path) -> None:
    (outcome,) = encode_slides([phantom], tmp_path)
    assert outcome.outcome == "done", outcome.reason
    bag = read_bag(tmp_path / FEATURES / "P-1.h5")
    assert bag.coords is not None
    found = {(int(x) // 256, int(y) // 256) for x, y in bag.coords.tolist()}
    assert {(x, y) for y in (1, 2) for x in (1, 2, 3)} <= found
    assert not {(0, 0), (4, 0), (0, 3), (4, 3)} & found


# Damage, and readers that die.


@pytest.mark.slow
def test_cut_slides_fail_by_name_and_the_others_are_written(data: Path, tmp_path: Path) -> None:
    aperio = (data / "slides/cmu-1-small-region.svs").read_bytes()
    generic = write_tiff(tmp_path / "whole.tiff", stained(), compression="jpeg")
    slides = [generic]
    for name, content in (("aperio.svs", aperio), ("generic.tiff", generic.read_bytes())):
        for share in (40, 90):
            slides.append(tmp_path / f"cut-{share}-{name}")
            slides[-1].write_bytes(content[: len(content) * share // 100])
    good, *cut = encode_slides(slides, tmp_path / "out")
    assert (good.outcome, good.patches) == ("done", 2)
    assert is_done(tmp_path / "out" / FEATURES / "whole.h5")
    assert {(o.outcome, o.stage) for o in cut} == {("failed", "open")}
    assert [o.slide_id for o in cut] == [path.stem for path in slides[1:]]
    assert all("cut short" in o.reason for o in cut[:2])
    assert all("Short read" in o.reason for o in cut[2:])
    assert exit_code([good, *cut]) == 1
    assert [path.name for path in (tmp_path / "out" / FEATURES).glob("*.h5")] == ["whole.h5"]


def test_a_tile_overwritten_with_zeros_fails_at_reading(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "hole.tiff", stained(), compression="jpeg")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 4] = bytes(len(content) // 4)
    path.write_bytes(content)
    (outcome,) = encode_slides([path], tmp_path / "out")
    assert (outcome.outcome, outcome.stage) == ("failed", "read")
    assert "level 0 at (" in outcome.reason
    assert not list((tmp_path / "out").rglob("*.h5*"))


@pytest.mark.slow
def test_a_killed_reader_is_one_slide_s_failure(
    tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[bytes]]
) -> None:
    texture = encode.create_patch_encoder("texture")

    class Killer:
        name, width, version, patch_size = "texture", texture.width, texture.version, None
        calls = 0

        def __call__(self, patches: Pixels) -> npt.NDArray[np.float32]:
            self.calls += 1
            if self.calls == 1:
                os.killpg(children[0].pid, signal.SIGKILL)
            return texture(patches)

    monkeypatch.setattr(encode, "create_patch_encoder", lambda *_, **__: Killer())
    good = write_tiff(tmp_path / "good.tiff", stained())
    first, second = encode_slides([phantom, good], tmp_path / "out", EncodeSettings(workers=1, batch_size=1))
    assert (first.outcome, first.stage, second.outcome) == ("failed", "read", "done")
    assert "SIGKILL" in first.reason
    assert [path.name for path in (tmp_path / "out" / FEATURES).glob("*.h5")] == ["good.h5"]


@pytest.mark.parametrize("limit", [0.001, 0.05])
def test_no_child_outlives_the_time_limit(
    tmp_path: Path, limit: float, children: list[subprocess.Popen[bytes]]
) -> None:
    slides = [write_tiff(tmp_path / f"{name}.tiff", stained()) for name in "ab"]
    outcomes = encode_slides(slides, tmp_path / "out", EncodeSettings(time_limit=limit))
    assert [(o.outcome, o.stage) for o in outcomes] == [("failed", "time limit")] * 2
    assert all(f"{limit:g} seconds" in o.reason for o in outcomes)
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.killpg(child.pid, 0)


def test_a_reader_that_hangs_leaves_with_its_killed_parent(phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'abbe.slides.reader' in sys.orig_argv:\n"
        "    import openslide, os, time\n"
        "    def hang(*_):\n"
        f"        open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}}\\n')\n"
        "        time.sleep(60)\n"
        "    openslide.OpenSlide.read_region = hang\n"
    )
    code = f"from abbe.slides.slide import read_thumbnail; read_thumbnail({str(phantom)!r})"
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    note = tmp_path / "pid"
    while not (note.exists() and note.read_text().endswith("\n")):
        assert parent.poll() is None
        time.sleep(0.02)
    child = int(note.read_text())
    os.kill(child, 0)  # alive, and hanging
    parent.kill()
    parent.wait()
    for _ in range(500):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the reader outlived its parent")


def test_an_unknown_job_and_a_missing_option_are_reported(phantom: Path) -> None:
    for job, why in (("bogus", "KeyError: 'bogus'"), ("thumbnail", "TypeError: .*'side'")):
        with read_slide(job, phantom) as frames, pytest.raises(SlideError, match=rf"read: .* exit code 1: {why}"):
            list(frames)
