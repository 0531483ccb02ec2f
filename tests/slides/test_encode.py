import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from abbe.config import read_config
from abbe.errors import ConfigError, InputError
from abbe.slides import encode
from abbe.slides.encode import Encode, encode_slides
from abbe.slides.find import find_slides
from abbe.store.bags import read_bag
from abbe.store.commit import is_done, read_sidecar, sidecar_path

JOB = "20x_256px_0px_overlap"


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "outcomes.csv", newline="") as file:
        return list(csv.DictReader(file))


def features_of(out: Path, slide_id: str, job: str = JOB) -> Path:
    return out / job / "features_texture" / f"{slide_id}.h5"


def paint(path: Path, *, seed: int = 0, blank: bool = False) -> Path:
    """A tiled TIFF of 600 × 560 pixels at 0.5 µm a pixel, its left half stained: two patches of 256 pixels."""
    pixels = np.full((560, 600, 3), 245, np.uint8)
    if not blank:
        noise = np.random.default_rng(seed).integers(0, 25, (560, 300, 1), dtype=np.uint8)
        pixels[:, :300] = np.array([200, 100, 150], np.uint8) + noise
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path, pixels, tile=(128, 128), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    return path


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every feature and patches file: both stay when nothing is written again."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(out.rglob("*.h5"))}


@pytest.fixture(scope="module")
def real(data, tmp_path_factory):
    """One run over the three real slides and a copy cut short, with its exit code."""
    folder = tmp_path_factory.mktemp("real")
    short = folder / "cut-short.svs"
    whole = (data / "slides/cmu-1-small-region.svs").read_bytes()
    short.write_bytes(whole[: len(whole) // 2])
    slides = (
        data / "slides/cmu-1-small-region.svs",
        short,
        data / "slides/tcga-cr-7395-01a-01-ts1.svs",
        data / "slides/test3-DAPI-2-(387).ndpi",
    )
    verb = Encode(slides=slides, out=folder / "out")
    return verb, verb.run()


def test_real_slides_each_have_their_outcome(real):
    verb, code = real
    good, short, nameless, dark = rows(verb.out)
    assert code == 1
    assert [good["slide_id"], good["outcome"]] == ["cmu-1-small-region", "done"]
    assert 40 <= int(good["patches"]) <= 46
    assert [short["outcome"], short["stage"]] == ["failed", "open"]
    assert "cut short" in short["reason"]
    assert [nameless["outcome"], nameless["stage"]] == ["failed", "geometry"]
    assert "--override-mpp" in nameless["reason"]
    assert [dark["slide_id"], dark["outcome"]] == ["test3-DAPI-2-(387)", "empty"]
    assert "fluorescence" in dark["reason"]


def test_the_files_are_trident_s_and_read_as_a_bag(real):
    verb, _ = real
    path = features_of(verb.out, "cmu-1-small-region")
    bag = read_bag(path)
    assert (bag.mpp, bag.level0_size, bag.encoder) == (0.499, (2220, 2967), "texture")
    assert bag.patch_size_level0 == bag.stride_level0 == 256
    with h5py.File(path) as file:
        assert file["features"].dtype == np.float32
        assert file["coords"].dtype == np.int64
        attributes = dict(file["coords"].attrs)
    assert attributes["savetodir"] == JOB  # nothing of where --out lies
    ratio = attributes["level0_magnification"] / attributes["target_magnification"]
    assert (attributes["patch_size"] - attributes["overlap"]) * ratio == pytest.approx(bag.stride_level0)
    with h5py.File(verb.out / JOB / "patches/cmu-1-small-region_patches.h5") as file:
        assert np.array_equal(file["coords"][()], bag.coords.numpy())
    with h5py.File(verb.out / JOB / "patches/test3-DAPI-2-(387)_patches.h5") as file:
        assert file["coords"].shape == (0, 2)


def test_the_same_command_again_writes_nothing(real):
    verb, _ = real
    before = stamps(verb.out)
    assert verb.run() == 1
    assert stamps(verb.out) == before
    assert [row["outcome"] for row in rows(verb.out)] == ["done", "failed", "failed", "empty"]
    assert int(rows(verb.out)[0]["patches"]) > 0


def test_features_are_the_same_bytes_in_any_folder(real, tmp_path):
    verb, _ = real
    encode_slides(verb.slides[:1], tmp_path / "elsewhere")
    for name in ("features_texture/cmu-1-small-region.h5", "patches/cmu-1-small-region_patches.h5"):
        assert (tmp_path / "elsewhere" / JOB / name).read_bytes() == (verb.out / JOB / name).read_bytes()


@pytest.mark.slow
def test_override_mpp_makes_the_nameless_slide_usable(real, tmp_path):
    (outcome,) = encode_slides(real[0].slides[2:3], tmp_path, override_mpp=0.5)
    assert outcome.outcome == "done"
    assert 150 <= outcome.patches <= 170


def test_done_slides_are_not_opened_again(tmp_path, monkeypatch):
    slides = [paint(tmp_path / "a.tiff"), paint(tmp_path / "blank.tiff", blank=True)]
    encode_slides(slides, tmp_path / "out")
    monkeypatch.setattr(encode, "read_slide", None)  # whoever opens a slide now fails
    again = encode_slides(slides, tmp_path / "out")
    assert [(o.outcome, o.patches) for o in again] == [("done", 2), ("empty", 0)]
    assert "nothing stained" in again[1].reason
    (third,) = encode_slides([paint(tmp_path / "c.tiff")], tmp_path / "out")
    assert third.stage == "internal"  # and that would be seen


@pytest.mark.parametrize("damage", ["sidecar lost", "flipped", "cut", "features lost"])
def test_damaged_outputs_are_made_again(tmp_path, damage):
    slide, out = paint(tmp_path / "a.tiff"), tmp_path / "out"
    encode_slides([slide], out)
    path = features_of(out, "a")
    whole = path.read_bytes()
    if damage == "sidecar lost":
        sidecar_path(path).unlink()
    elif damage == "flipped":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(whole[:-10])
    else:
        path.unlink()
    assert encode_slides([slide], out)[0].outcome == "done"
    assert path.read_bytes() == whole
    assert is_done(path)


def test_a_changed_slide_under_an_old_output_is_refused(tmp_path):
    slide, out = paint(tmp_path / "a.tiff"), tmp_path / "out"
    encode_slides([slide], out)
    before = stamps(out)
    paint(slide, seed=1)
    (outcome,) = encode_slides([slide], out)
    assert (outcome.outcome, outcome.stage) == ("failed", "resume")
    assert "another version of the slide" in outcome.reason
    assert "--overwrite" in outcome.reason
    assert stamps(out) == before
    assert encode_slides([slide], out, overwrite=True)[0].outcome == "done"
    assert stamps(out) != before
    assert encode_slides([slide], out)[0].outcome == "done"


def test_other_settings_under_an_old_output_are_refused(tmp_path):
    slides, out = [paint(tmp_path / "a.tiff"), paint(tmp_path / "blank.tiff", blank=True)], tmp_path / "out"
    encode_slides(slides, out)
    for outcome in encode_slides(slides, out, override_mpp=0.51):
        assert outcome.stage == "resume"
        assert "override_mpp=None, now 0.51" in outcome.reason
    assert encode_slides(slides[:1], out, mpp=1.0)[0].outcome != "failed"  # another tiling lies in another folder


def test_a_slide_that_turns_out_empty_leaves_no_old_features(tmp_path):
    slide, out = paint(tmp_path / "a.tiff"), tmp_path / "out"
    encode_slides([slide], out)
    paint(slide, blank=True)
    assert encode_slides([slide], out, overwrite=True)[0].outcome == "empty"
    assert not features_of(out, "a").exists()
    assert not sidecar_path(features_of(out, "a")).exists()


def test_another_program_s_file_is_not_replaced(tmp_path):
    slide, out = paint(tmp_path / "a.tiff"), tmp_path / "out"
    foreign = out / JOB / "patches" / "a_patches.h5"
    foreign.parent.mkdir(parents=True)
    with h5py.File(foreign, "w") as file:
        file["coords"] = np.zeros((1, 2), np.int64)
    before = foreign.read_bytes()
    (outcome,) = encode_slides([slide], out)
    assert outcome.stage == "resume"
    assert "not written by abbe" in outcome.reason
    assert foreign.read_bytes() == before


def test_the_time_limit(tmp_path):
    (outcome,) = encode_slides([paint(tmp_path / "a.tiff")], tmp_path / "out", time_limit=0.01)
    assert (outcome.outcome, outcome.stage) == ("failed", "time limit")
    assert not list((tmp_path / "out").rglob("*.h5"))


def test_an_encoder_that_fails_is_one_slide_s_failure(tmp_path, monkeypatch):
    class Broken:
        name, width, version, patch_size = "texture", 4, 1, None

        def __call__(self, patches):
            return np.full((len(patches), 4), np.nan, np.float32)

    monkeypatch.setattr(encode, "create_patch_encoder", lambda _: Broken())
    (outcome,) = encode_slides([paint(tmp_path / "a.tiff")], tmp_path / "out")
    assert (outcome.outcome, outcome.stage) == ("failed", "encode")
    assert "finite" in outcome.reason


def test_a_full_disk_is_a_failure_by_name(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode.trident, "write_features", full)
    (outcome,) = encode_slides([paint(tmp_path / "a.tiff")], tmp_path / "out")
    assert (outcome.outcome, outcome.stage) == ("failed", "write")
    assert "No space left" in outcome.reason


@pytest.mark.parametrize("name", ["a [x].tiff", "a,b\n'c'.tiff", "ü.tiff", os.fsdecode(b"caf\xe9.tiff"), "x.ome.tif"])
def test_odd_names(tmp_path, name):
    paint(tmp_path / "plain.tiff").rename(tmp_path / name)
    (outcome,) = encode_slides([tmp_path], tmp_path / "out")
    assert outcome.outcome == "done", outcome.reason
    assert rows(tmp_path / "out")[0]["slide_id"] == outcome.slide_id
    assert read_bag(features_of(tmp_path / "out", outcome.slide_id)).slide_id == outcome.slide_id


def test_outcomes_come_in_the_order_of_the_inputs(tmp_path):
    slides = [paint(tmp_path / f"{name}.tiff") for name in "cab"]
    assert [outcome.slide_id for outcome in encode_slides(slides, tmp_path / "out", workers=3)] == ["c", "a", "b"]
    assert [row["slide_id"] for row in rows(tmp_path / "out")] == ["c", "a", "b"]


def test_the_config_of_a_run_runs_it_again(tmp_path):
    encode_slides([paint(tmp_path / "a.tiff")], tmp_path / "out", patch_size=128, override_mpp=0.5)
    verb = read_config(Encode, tmp_path / "out/config.json")
    assert verb == Encode((tmp_path / "a.tiff",), tmp_path / "out", patch_size=128, override_mpp=0.5)
    made_with = read_sidecar(features_of(tmp_path / "out", "a", "20x_128px_0px_overlap"))["made_with"]
    assert made_with["settings"]["patch_size"] == 128


def test_json_is_all_that_stands_on_stdout(tmp_path, capsys):
    assert Encode((paint(tmp_path / "a.tiff"),), tmp_path / "out", json=True).run() == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert (outcome["outcome"], outcome["patches"]) == ("done", 2)


@pytest.mark.slow
def test_an_interrupted_run_writes_its_outcomes(tmp_path):
    slides = [paint(tmp_path / "slides" / f"s{number:02d}.tiff") for number in range(12)]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "abbe.cli", "encode", str(tmp_path / "slides"), "--out", str(out), "--workers=1"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not features_of(out, "s00").exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    found = [row["outcome"] for row in rows(out)]
    assert len(found) == len(slides)
    assert found[0] == "done"
    assert {row["stage"] for row in rows(out) if row["outcome"] == "failed"} == {"interrupted"}
    assert [outcome.outcome for outcome in encode_slides([tmp_path / "slides"], out)] == ["done"] * len(slides)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mpp": 0.001}, "--mpp is 0.001"),
        ({"override_mpp": 500.0}, "--override-mpp is 500"),
        ({"patch_size": 16}, "--patch-size is 16"),
        ({"overlap": 256}, "--overlap is 256"),
        ({"workers": 0}, "--workers is 0"),
        ({"time_limit": 0.0}, "--time-limit is 0"),
        ({"encoder": "textur"}, "Did you mean 'texture'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_work(tmp_path, options, why):
    slide = paint(tmp_path / "a.tiff")
    with pytest.raises(ConfigError, match=why):
        encode_slides([slide], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_paths_that_cannot_be_are_refused_before_work(tmp_path):
    slide = paint(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"nothing\.svs: no such slide"):
        encode_slides([slide, tmp_path / "nothing.svs"], tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: no slides found"):
        encode_slides([tmp_path / "folder"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"--out .*no folder can be made"):
        encode_slides([slide], slide / "out")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_are_searched(tmp_path):
    touch(*(tmp_path / name for name in ("b.svs", "a.TIFF", "in/c.ndpi", "in/notes.txt", "._b.svs", ".trash/d.svs")))
    (tmp_path / "e.mrxs").mkdir()  # a folder of that name is no slide
    touch(tmp_path / "far" / "away" / "x.svs")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling.svs").symlink_to(tmp_path / "gone.svs")
    assert list(find_slides([tmp_path])) == ["a", "b", "x", "c"]
    assert list(find_slides([tmp_path / "b.svs", tmp_path])) == ["b", "a", "x", "c"]


def test_slides_of_one_stem_are_named_by_their_path(tmp_path):
    touch(*(tmp_path / name for name in ("a/x.svs", "b/x.svs", "b/x.tiff", "b/y.svs")))
    assert list(find_slides([tmp_path])) == ["a__x.svs", "b__x.svs", "b__x.tiff", "y"]
    assert list(find_slides([tmp_path / "a/x.svs", tmp_path / "b/x.svs"])) == ["a__x.svs", "b__x.svs"]
    assert list(find_slides([tmp_path / "a", tmp_path / "b/x.svs"])) == ["a__x.svs", "b__x.svs"]
    assert list(find_slides([tmp_path / "b/y.svs", tmp_path / "b" / ".." / "b" / "y.svs"])) == ["y"]
