import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from abbe.errors import SlideError
from abbe.slides.slide import READER, read_regions, read_slide, read_thumbnail

TILES = {"target_mpp": 0.5, "patch_size": 64, "overlap": 0, "override_mpp": None, "batch": 7}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A tiled TIFF of 600 × 500 pixels at 0.5 µm per pixel: pink on the left, glass on the right, one level."""
    path = tmp_path_factory.mktemp("slide") / "pink.tiff"
    pixels = np.full((500, 600, 3), 245, np.uint8)
    pixels[:, :300] = (210, 110, 160)
    pixels[:, :300] += np.random.default_rng(0).integers(0, 25, (500, 300, 1), dtype=np.uint8)
    tifffile.imwrite(
        path, pixels, tile=(128, 128), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    return path


@pytest.fixture
def sitecustomize(tmp_path, monkeypatch):
    """Code that every Python child started from here runs first."""

    def write(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


def frames_of(path, **options):
    with read_slide("tiles", path, **{**TILES, **options}) as frames:
        return list(frames)


def test_a_plan_and_then_its_patches(slide):
    plan, *batches = frames_of(slide)
    coords = np.frombuffer(plan.payload, "<i8").reshape(-1, 2)
    assert plan.kind == "plan"
    assert plan.header["mpp"] == pytest.approx(0.5)
    assert plan.header["size_level0"] == [600, 500]
    assert plan.header["patches"] == len(coords) == 5 * 7
    assert [batch.header["count"] for batch in batches] == [7] * 5
    pixels = np.concatenate([np.frombuffer(b.payload, np.uint8).reshape(-1, 64, 64, 3) for b in batches])
    handle = openslide.OpenSlide(slide)
    for corner, patch in zip(coords.tolist(), pixels, strict=True):
        expected = np.asarray(handle.read_region(tuple(corner), 0, (64, 64)).convert("RGB"))
        assert np.array_equal(patch, expected)


def test_a_finer_slide_is_scaled_down(slide):
    plan, batch, *_ = frames_of(slide, override_mpp=0.3)
    assert plan.header["patch_size_level0"] == 107
    assert "--override-mpp" in plan.header["warnings"][0]  # the slide says 0.5
    assert len(batch.payload) == 7 * 64 * 64 * 3


@pytest.mark.slow
def test_a_thumbnail_is_the_mean_of_level_0_whatever_the_blocks(slide, tmp_path):
    whole = tifffile.imread(slide)
    pixels, downsample = read_thumbnail(slide, side=60)
    assert downsample == 10
    mean = whole.reshape(50, 10, 60, 10, 3).mean((1, 3))
    assert np.abs(pixels - mean).max() <= 1
    large = np.random.default_rng(0).integers(0, 255, (5, 5, 3), dtype=np.uint8).repeat(1000, 0).repeat(1000, 1)
    path = tmp_path / "large.tiff"
    tifffile.imwrite(path, large, tile=(512, 512), photometric="rgb", compression="deflate")
    pixels, downsample = read_thumbnail(path, side=250)
    assert (pixels.shape, downsample) == ((250, 250, 3), 20)
    assert np.abs(pixels.astype(int) - large[10::20, 10::20]).max() <= 1


def test_the_child_never_imports_torch(slide, sitecustomize):
    sitecustomize("import sys\nsys.modules['torch'] = None  # an import of it now raises\n")
    assert frames_of(slide)[0].kind == "plan"
    probe = subprocess.run([sys.executable, "-c", "import abbe.types"], capture_output=True, check=False)
    assert b"torch" in probe.stderr  # the guard works: what does import torch dies here


@pytest.mark.slow
def test_label_and_macro_images_are_never_read(data, sitecustomize):
    sitecustomize(
        "import openslide, openslide.lowlevel as low\n"
        "def refuse(*_):\n    raise SystemExit('an associated image was touched')\n"
        "openslide.OpenSlide.associated_images = property(refuse)\n"
        "low.read_associated_image = low.get_associated_image_names = refuse\n"
    )
    path = data / "slides/cmu-1-small-region.svs"
    assert frames_of(path, patch_size=256)[0].header["patches"] > 40
    read_thumbnail(path, side=200)
    read_regions(path, np.array([[0, 0]]), 256, side=64)
    probe = f"import openslide; openslide.OpenSlide({str(path)!r}).associated_images"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 1


def test_prints_of_native_libraries_do_not_break_frames(slide, sitecustomize):
    sitecustomize(
        "import os, openslide\n"
        "plain = openslide.OpenSlide.read_region\n"
        "def loud(*args):\n    os.write(1, b'a decoder talks' * 100)\n    return plain(*args)\n"
        "openslide.OpenSlide.read_region = loud\n"
    )
    assert len(frames_of(slide)) == 6


def test_a_module_in_the_current_folder_is_not_imported(slide, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert frames_of(slide)[0].kind == "plan"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_crash_of_the_child_is_reported(slide):
    code = "import os, sys; sys.stderr.write('bad tile\\n'); sys.stderr.flush(); os.kill(os.getpid(), 11)"
    with pytest.raises(SlideError, match="read: the reader process was killed by SIGSEGV: bad tile"):
        frames_of(slide, command=python(code))


def test_an_exit_without_an_answer_is_reported(slide):
    with pytest.raises(SlideError, match="read: the reader process ended with exit code 3: no decoder"):
        frames_of(slide, command=python("import sys; sys.stderr.write('no decoder\\n'); sys.exit(3)"))


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x10", b"\x10\0\0\0{}", struct.pack("<I", 5) + b"{\"a\"}"[:4], b"some text of a library, no frame at all"],
)  # fmt: skip
def test_torn_answers_are_reported(slide, answer):
    with pytest.raises(SlideError, match="reader process"):
        frames_of(slide, command=python(f"import os; os.write(1, {answer!r})"))


def test_patches_cut_short_are_no_patches(slide):
    header = json.dumps({"kind": "patches", "bytes": 100, "count": 1}).encode()
    answer = struct.pack("<I", len(header)) + header + b"only these"
    with pytest.raises(SlideError, match="exit code 0"):
        frames_of(slide, command=python(f"import os; os.write(1, {answer!r})"))


def hanging(tmp_path) -> list[str]:
    """A reader that starts a process of its own, writes its number down, and hangs."""
    note = str(tmp_path / "pid")
    code = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({note!r}, 'w').write(str(other.pid) + chr(10))\n"
        "time.sleep(60)"
    )
    return python(code)


def is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
def test_the_time_limit_kills_the_child_and_what_it_started(slide, tmp_path):
    with pytest.raises(SlideError, match=r"time limit: not done after 1 seconds; raise --time-limit"):
        frames_of(slide, command=hanging(tmp_path), time_limit=1.0)
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_another_thread_can_halt_a_reader(slide, tmp_path):
    halt = threading.Event()

    def soon() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
            time.sleep(0.01)
        halt.set()

    thread = threading.Thread(target=soon)
    thread.start()
    with pytest.raises(SlideError, match="interrupted"):
        frames_of(slide, command=hanging(tmp_path), halt=halt)
    thread.join()
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_caller_that_leaves_early_leaves_no_child_behind(slide, monkeypatch):
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    with read_slide("tiles", slide, **TILES) as frames:
        next(frames)
    assert READER[0] == sys.executable
    (child,) = started
    assert child.returncode is not None  # it has ended, and was waited for
