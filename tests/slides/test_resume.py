"""Going on: what is done stays, what was cut off is made again, what was made otherwise is not replaced in silence."""

import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch

from abbe.slides import job
from abbe.slides.encode import encode_slides
from abbe.slides.find import find_slides
from abbe.slides.resume import fingerprint
from abbe.slides.settings import EncodeSettings
from abbe.store.bags import write_bag
from abbe.store.commit import is_done, read_sidecar, sidecar_path
from builders import make_bag
from slides.painted import JOB, features_of, paint, rows, stamps


def test_done_slides_are_not_opened_again(tmp_path, monkeypatch):
    slides = [paint(tmp_path / "a.tiff"), paint(tmp_path / "blank.tiff", blank=True)]
    encode_slides(slides, tmp_path / "out")
    monkeypatch.setattr(job, "read_slide", None)  # whoever opens a slide now fails
    again = encode_slides(slides, tmp_path / "out")
    assert [(o.outcome, o.patches) for o in again] == [("done", 2), ("empty", 0)]
    assert "nothing stained" in again[1].reason
    (third,) = encode_slides([paint(tmp_path / "c.tiff")], tmp_path / "out")
    assert third.stage == "internal"  # and that would be seen


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert encode_slides([slide], out, EncodeSettings(overwrite=True))[0].outcome == "done"
    assert stamps(out) != before
    assert encode_slides([slide], out)[0].outcome == "done"


@pytest.mark.slow
def test_other_settings_under_an_old_output_are_refused(tmp_path):
    slides, out = [paint(tmp_path / "a.tiff"), paint(tmp_path / "blank.tiff", blank=True)], tmp_path / "out"
    encode_slides(slides, out)
    for outcome in encode_slides(slides, out, EncodeSettings(override_mpp=0.51)):
        assert outcome.stage == "resume"
        assert "settings.override_mpp is None there and 0.51 here" in outcome.reason
    assert (
        encode_slides(slides[:1], out, EncodeSettings(mpp=1.0))[0].outcome != "failed"
    )  # another tiling lies in another folder


@pytest.mark.slow
def test_a_slide_that_turns_out_empty_leaves_no_old_features(tmp_path):
    slide, out = paint(tmp_path / "a.tiff"), tmp_path / "out"
    encode_slides([slide], out)
    paint(slide, blank=True)
    assert encode_slides([slide], out, EncodeSettings(overwrite=True))[0].outcome == "empty"
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


@pytest.mark.slow
def test_an_interrupted_run_writes_its_outcomes(tmp_path):
    slides = [paint(tmp_path / "slides" / f"s{number:02d}.tiff") for number in range(12)]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "abbe.cli", "encode", str(tmp_path / "slides"), "--out", str(out), "--workers=1"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not features_of(out, "s00").exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=900)
    assert run.returncode == 130, said
    found = [row["outcome"] for row in rows(out)]
    assert len(found) == len(slides)
    assert found[0] == "done"
    assert {row["stage"] for row in rows(out) if row["outcome"] == "failed"} == {"interrupted"}
    assert [outcome.outcome for outcome in encode_slides([tmp_path / "slides"], out)] == ["done"] * len(slides)


@pytest.mark.slow
def test_files_and_sidecars_are_the_same_bytes_whatever_out_workers_and_batches(tmp_path):
    slides = [
        paint(tmp_path / "a.tiff"),
        paint(tmp_path / "b.tiff", height=820),
        paint(tmp_path / "c.tiff", blank=True),
    ]
    for out, workers, batch_size in (("one", 1, 32), ("the other/deeper", 3, 1)):
        encode_slides(slides, tmp_path / out, EncodeSettings(workers=workers, batch_size=batch_size))
    one, other = tmp_path / "one" / JOB, tmp_path / "the other/deeper" / JOB
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert len(names) == 2 * (2 + 3)  # features of two slides, patches of three, each with its sidecar
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_feature_file_by_another_verb_is_named_as_such(tmp_path):
    path, there = paint(tmp_path / "a.tiff"), features_of(tmp_path / "out", "a")
    write_bag(there, make_bag(3, slide_id="a"))
    (outcome,) = encode_slides([path], tmp_path / "out")
    assert (outcome.stage, is_done(there)) == ("resume", True)
    assert "another command, or another version of Abbe, made it" in outcome.reason


def test_other_precision_under_old_features_is_refused(tmp_path, monkeypatch):
    slide, out = paint(tmp_path / "a.tiff"), tmp_path / "out"
    encode_slides([slide], out, EncodeSettings(batch_size=1))
    assert "precision" in read_sidecar(features_of(out, "a"))["made_with"]
    before = stamps(out)
    assert (
        encode_slides([slide], out, EncodeSettings(batch_size=7, device="cpu"))[0].outcome == "done"
    )  # neither decides anything
    assert stamps(out) == before
    monkeypatch.setattr("abbe.slides.patch_encoders.texture.TextureEncoder.dtype", torch.float16, raising=False)
    (outcome,) = encode_slides([slide], out)
    assert outcome.stage == "resume"
    assert "precision is 'float32' there and 'float16' here" in outcome.reason


@pytest.mark.parametrize("change", ["changed", "lost", "added"])
def test_a_changed_companion_is_another_version_of_the_slide(tmp_path, change):
    (tmp_path / "m").mkdir()
    for name in ("m.mrxs", "m/Data0.dat", "m/Data1.dat"):
        (tmp_path / name).write_bytes(name.encode())
    (slide,) = find_slides([tmp_path / "m.mrxs"])
    before = fingerprint(slide.files)
    assert before == fingerprint(find_slides([tmp_path])[0].files)
    companion = tmp_path / "m" / ("Data2.dat" if change == "added" else "Data1.dat")
    if change == "lost":
        companion.unlink()
    else:
        companion.write_bytes(b"m/Data1.daT")
    assert fingerprint(find_slides([tmp_path])[0].files) != before


@pytest.mark.slow
def test_a_changed_file_of_a_dicom_series_is_noticed(data, tmp_path):
    folder, out = tmp_path / "case", tmp_path / "out"
    shutil.copytree(data / "slides/cmu1_small_dicom", folder)
    folder.chmod(0o755)
    (first,) = encode_slides([folder], out)
    assert (first.slide_id, first.outcome) == ("case", "done")
    (again,) = encode_slides([folder / "level-3-frames-0-1.dcm"], out)  # one of its files names the slide
    assert (again.slide_id, again.outcome, again.patches) == ("case", "done", first.patches)
    last = folder / "level-9-frames-0-1.dcm"
    content = last.read_bytes()
    last.chmod(0o644)
    last.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (changed,) = encode_slides([folder], out)
    assert changed.stage == "resume"
    assert "another version of the slide" in changed.reason
