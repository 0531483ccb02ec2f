import json
import re
import time

import h5py
import numpy as np
import pytest
import torch

from abbe.config import read_config
from abbe.errors import ConfigError, InputError
from abbe.slides import encode, job
from abbe.slides import slide as slide_module
from abbe.slides.encode import encode_slides
from abbe.slides.patch_encoders.texture import TextureEncoder
from abbe.slides.settings import EncodeSettings
from abbe.store.bags import read_bag
from abbe.store.commit import read_sidecar
from abbe.verbs.encode import Encode
from slides.painted import JOB, features_of, paint, rows, stamps

TABLE = [
    ("cmu-1-small-region", "done", "", "", 44),
    ("cmu1_small_dicom", "done", "", "background colour is 24\\d,12\\d,12\\d: the colours in the file look wrong", 42),
    ("tcga-cr-7395-01a-01-ts1", "failed", "geometry", "does not state its microns per pixel.*--override-mpp", 0),
    ("test3-DAPI-2-(387)", "empty", "tissue", "looks like fluorescence", 0),
    ("boxes", "failed", "geometry", "352.778 µm per pixel, outside .*--override-mpp", 0),
    ("boxes_0", "empty", "tissue", "smaller than a patch .16 × 16 ", 0),
    ("broken", "failed", "open", "not a slide that OpenSlide can read", 0),
    ("small_HE_levels", "failed", "geometry", "352.858 µm per pixel, outside .*--override-mpp", 0),
    ("smalltif", "failed", "open", "a TIFF of 16 bits in strips", 0),
    ("unreadable", "failed", "read", r"level 0 at \(0, 0\): .*marker", 0),
]


@pytest.fixture(scope="module")
def real(data, tmp_path_factory):
    """One run over all real slides, whole and broken, with its exit code."""
    verb = Encode(slides=(data / "slides", data / "slides_broken"), out=tmp_path_factory.mktemp("real") / "out")
    return verb, verb.run()


@pytest.mark.slow
def test_every_real_file_has_its_outcome(real):
    verb, code = real
    assert code == 1
    for row, (slide_id, outcome, stage, why, patches) in zip(rows(verb.out), TABLE, strict=True):
        assert (row["slide_id"], row["outcome"], row["stage"]) == (slide_id, outcome, stage)
        assert re.search(why, row["reason"]), row["reason"]
        assert bool(why) == bool(row["reason"])
        assert abs(int(row["patches"]) - patches) <= 2


@pytest.mark.slow
def test_override_mpp_makes_the_nameless_slide_usable(data, tmp_path):
    slide = data / "slides/tcga-cr-7395-01a-01-ts1.svs"
    (outcome,) = encode_slides([slide], tmp_path, EncodeSettings(override_mpp=0.5))
    assert (outcome.outcome, outcome.patches) == ("done", 160)


@pytest.mark.slow
def test_dicom_patches_lie_where_those_of_the_same_svs_do(real):
    verb, _ = real
    places = [read_bag(features_of(verb.out, name)).coords for name in ("cmu-1-small-region", "cmu1_small_dicom")]
    one, other = ({tuple(place) for place in coords.tolist()} for coords in places)
    assert len(one & other) >= 40


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


@pytest.mark.slow
def test_the_same_command_again_writes_nothing(real):
    verb, _ = real
    before = stamps(verb.out)
    assert verb.run() == 1
    assert stamps(verb.out) == before
    assert [row["outcome"] for row in rows(verb.out)] == [outcome for _, outcome, *_ in TABLE]
    assert int(rows(verb.out)[0]["patches"]) > 0


def test_an_encoder_that_fails_is_one_slide_s_failure(tmp_path, monkeypatch):
    class Broken:
        name, width, version, patch_size = "texture", 4, 1, None

        def __call__(self, patches):
            return np.full((len(patches), 4), np.nan, np.float32)

    monkeypatch.setattr(encode, "create_patch_encoder", lambda *_, **__: Broken())
    (outcome,) = encode_slides([paint(tmp_path / "a.tiff")], tmp_path / "out")
    assert (outcome.outcome, outcome.stage) == ("failed", "encode")
    assert "finite" in outcome.reason


def test_a_full_disk_is_a_failure_by_name(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job.trident, "write_features", full)
    (outcome,) = encode_slides([paint(tmp_path / "a.tiff")], tmp_path / "out")
    assert (outcome.outcome, outcome.stage) == ("failed", "write")
    assert "No space left" in outcome.reason


@pytest.mark.slow
def test_outcomes_come_in_the_order_of_the_inputs(tmp_path):
    slides = [paint(tmp_path / f"{name}.tiff") for name in "cab"]
    assert [outcome.slide_id for outcome in encode_slides(slides, tmp_path / "out", EncodeSettings(workers=3))] == [
        "c",
        "a",
        "b",
    ]
    assert [row["slide_id"] for row in rows(tmp_path / "out")] == ["c", "a", "b"]


def test_the_config_of_a_run_runs_it_again(tmp_path):
    encode_slides([paint(tmp_path / "a.tiff")], tmp_path / "out", EncodeSettings(patch_size=128, override_mpp=0.5))
    verb = read_config(Encode, tmp_path / "out/config.json")
    assert verb == Encode(slides=(tmp_path / "a.tiff",), out=tmp_path / "out", patch_size=128, override_mpp=0.5)
    made_with = read_sidecar(features_of(tmp_path / "out", "a", "20x_128px_0px_overlap"))["made_with"]
    assert made_with["settings"]["patch_size"] == 128


def test_json_is_all_that_stands_on_stdout(tmp_path, capsys):
    assert Encode(slides=(paint(tmp_path / "a.tiff"),), out=tmp_path / "out", json=True).run() == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert (outcome["outcome"], outcome["patches"]) == ("done", 2)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mpp": 0.001}, "--mpp is 0.001"),
        ({"override_mpp": 500.0}, "--override-mpp is 500"),
        ({"patch_size": 16}, "--patch-size is 16"),
        ({"overlap": 256}, "--overlap is 256"),
        ({"workers": 0}, "--workers is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"time_limit": 0.0}, "--time-limit is 0"),
        ({"encoder": "textur"}, "Did you mean 'texture'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_work(tmp_path, options, why):
    slide = paint(tmp_path / "a.tiff")
    with pytest.raises(ConfigError, match=why):
        encode_slides([slide], tmp_path / "out", EncodeSettings(**options))
    assert not (tmp_path / "out").exists()


def test_paths_that_cannot_be_are_refused_before_work(tmp_path):
    slide = paint(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"nothing\.svs: no such slide"):
        encode_slides([slide, tmp_path / "nothing.svs"], tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: no slides found"):
        encode_slides([tmp_path / "folder"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"--out .*the folder cannot be made"):
        encode_slides([slide], slide / "out")


@pytest.mark.slow
def test_workers_are_the_cores_this_process_may_use(tmp_path, monkeypatch):
    made = []

    class Pool(encode.ThreadPoolExecutor):
        def __init__(self, workers):
            made.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(encode, "ThreadPoolExecutor", Pool)
    slide = tmp_path / "a.tiff"
    slide.touch()
    for cores, workers in ((1, 1), (5, 5), (64, 8)):
        monkeypatch.setattr(encode.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        encode_slides([slide], tmp_path / "out")
        assert made.pop() == workers
    encode_slides([slide], tmp_path / "out", EncodeSettings(workers=11))
    assert made == [11]


@pytest.mark.slow
def test_reading_goes_on_while_the_encoder_works_but_not_far_ahead(tmp_path, monkeypatch):
    """The first patch is held by the encoder until the reader has had time to send all: five batches are read."""
    read, seen = [], []
    frames = slide_module._frames

    def counted(*arguments):
        for frame in frames(*arguments):
            read.append(frame.kind)
            yield frame

    class Slow(TextureEncoder):
        def __call__(self, patches):
            deadline = time.monotonic() + 300
            while not seen and read.count("patches") < 6 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0 if seen else 0.3)  # in which more would come, if more were read
            seen.append(read.count("patches"))
            return super().__call__(patches)

    monkeypatch.setattr(slide_module, "_frames", counted)
    monkeypatch.setattr(encode, "create_patch_encoder", lambda *_, **__: Slow())
    slide = paint(tmp_path / "a.tiff", height=820)
    (outcome,) = encode_slides([slide], tmp_path / "out", EncodeSettings(patch_size=128, batch_size=1))
    assert outcome.outcome == "done", outcome.reason
    assert outcome.patches > 8
    assert seen[0] == 6  # one at work, four in the queue, one in hand
    assert read_bag(features_of(tmp_path / "out", "a", "20x_128px_0px_overlap")).features.isfinite().all()


@pytest.mark.slow
def test_on_a_gpu_one_slide_at_a_time_is_encoded(tmp_path, monkeypatch):
    at_work, most = [], []

    class Gpu(TextureEncoder):
        device = torch.device("cuda")  # what `encode` goes by; it computes here all the same

        def __call__(self, patches):
            at_work.append(1)
            most.append(len(at_work))
            time.sleep(0.1)  # in which the other thread would come in
            at_work.pop()
            return super().__call__(patches)

    monkeypatch.setattr(encode, "create_patch_encoder", lambda *_, **__: Gpu())
    slides = [paint(tmp_path / f"{name}.tiff") for name in "ab"]
    outcomes = encode_slides(slides, tmp_path / "out", EncodeSettings(workers=2, batch_size=1))
    assert [outcome.outcome for outcome in outcomes] == ["done", "done"]
    assert most == [1] * 4
