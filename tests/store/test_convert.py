"""`abbe convert`, and pickles behind their one door."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from abbe.config import read_config
from abbe.errors import BagError, ConfigError, InputError
from abbe.store import pickles
from abbe.store.bags import read_bag, write_bag
from abbe.store.commit import is_done, read_sidecar
from abbe.store.convert import convert_bags
from abbe.store.find import find_features
from abbe.store.settings import ConvertSettings
from abbe.verbs.convert import Convert
from builders import make_bag, write_clam, write_slidechat, write_stamp


def test_a_pipe_and_a_dangling_link_are_rows_and_do_not_hang(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_bag(source / "a.h5", make_bag(5))
    os.mkfifo(source / "b.h5")
    (source / "c.h5").symlink_to(tmp_path / "nowhere")
    found = {
        row.slide_id: (row.outcome, row.reason) for row in convert_bags([source], out, ConvertSettings(to="tensors"))
    }
    assert found["a"][0] == "done"
    assert found["b"] == ("skipped", "not a regular file (a pipe, a socket or a device)")
    assert found["c"] == ("skipped", "a broken link")


def test_a_folder_of_all_sorts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_clam(source / "clam", make_bag(25, slide_id="a"))
    write_stamp(source / "b.h5", make_bag(12))
    write_slidechat(source / "c.csv", np.ones((3, 512)))
    write_bag(source / "d.h5", make_bag(0))
    (source / "labels.csv").write_text("slide_id,label\na,b\n")
    (source / "e.h5").write_text("torn")
    assert Convert(inputs=(source,), out=out, to="tensors", override_mpp=0.5, json=True).run() == 1
    printed = json.loads(capsys.readouterr().out)
    table = pd.read_csv(out / "outcomes.csv", keep_default_na=False)
    rows = {(row.slide_id, row.outcome): row for row in table.itertuples()}
    assert len(printed) == len(table) == 8
    assert rows["a", "done"].patches == 25
    assert rows["d", "empty"].patches == 0
    skipped = table[table.outcome == "skipped"]
    assert sorted(skipped.reason) == [
        "h5_files has the same features with their coordinates",
        "patches without features",
    ]
    assert "cannot be opened as HDF5" in rows["e", "failed"].reason
    assert "a table, but not of features" in rows["labels", "failed"].reason
    back = read_bag(out / "b.safetensors")
    assert (len(back), back.mpp, back.encoder, back.source) == (12, 0.5, "mahmood-conch1_5", str(out / "b.safetensors"))
    assert read_bag(out / "c.safetensors").coords is None
    sidecars = {name: read_sidecar(out / f"{name}.safetensors") for name in "abcd"}
    assert {name: sidecar and sidecar["made_with"]["read_as"] for name, sidecar in sidecars.items()} == {
        "a": "clam",
        "b": "stamp",
        "c": "slidechat",
        "d": "trident",
    }
    assert read_config(Convert, out / "config.json") == Convert(
        inputs=(source,), out=out, to="tensors", override_mpp=0.5
    )


def test_the_same_command_again_makes_nothing_again(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "ab":
        write_bag(source / f"{name}.h5", make_bag(5))
    convert_bags([source], out, ConvertSettings(to="clam"))
    made = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*.h5"))}
    assert len(made) == 4
    again = convert_bags([source], out, ConvertSettings(to="clam"))
    assert [(row.outcome, row.patches) for row in again] == [("done", 5)] * 2
    assert {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*.h5"))} == made
    (out / "patches" / "a.h5").unlink()
    (out / "h5_files" / "b.h5").write_bytes(b"torn")
    convert_bags([source], out, ConvertSettings(to="clam"))
    assert all(is_done(path) for path in made)


def test_a_source_that_changed_is_named(tmp_path: Path) -> None:
    source, out = tmp_path / "a.h5", tmp_path / "out"
    write_bag(source, make_bag(5))
    convert_bags([source], out, ConvertSettings(to="tensors"))
    write_bag(source, make_bag(6))
    (row,) = convert_bags([source], out, ConvertSettings(to="tensors"))
    assert (row.outcome, row.stage) == ("failed", "resume")
    assert "another version of a.h5; use --overwrite" in row.reason
    assert len(read_bag(out / "a.safetensors")) == 5
    (row,) = convert_bags([source], out, ConvertSettings(to="tensors", overwrite=True))
    assert (row.outcome, row.patches) == ("done", 6)
    (row,) = convert_bags([source], out, ConvertSettings(to="tensors", override_mpp=0.3))
    assert "other options" in row.reason


def test_a_foreign_file_is_not_replaced(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", make_bag(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.h5").write_text("mine")
    (row,) = convert_bags([tmp_path / "a.h5"], tmp_path / "out")
    assert (row.outcome, (tmp_path / "out" / "a.h5").read_text()) == ("failed", "mine")
    assert "was not written by abbe" in row.reason


def test_the_patches_file_is_looked_at_too(tmp_path: Path) -> None:
    """Of CLAM's two files only the second would be someone's own."""
    own, out = tmp_path / "own", tmp_path / "out"
    write_clam(own, make_bag(5, slide_id="c1"))
    (own / "h5_files" / "c1.h5").unlink()
    before = (own / "patches" / "c1.h5").read_bytes()
    for overwrite in (False, True):
        (row,) = convert_bags([own / "pt_files" / "c1.pt"], own, ConvertSettings(to="clam", overwrite=overwrite))
        assert (row.outcome, row.stage) == ("failed", "resume")
        assert "is read for this conversion" in row.reason
    assert (own / "patches" / "c1.h5").read_bytes() == before
    write_bag(tmp_path / "c1.h5", make_bag(5))
    (out / "patches").mkdir(parents=True)
    (out / "patches" / "c1.h5").write_text("mine")
    (row,) = convert_bags([tmp_path / "c1.h5"], out, ConvertSettings(to="clam"))
    assert "c1.h5 was not written by abbe" in row.reason
    assert (out / "patches" / "c1.h5").read_text() == "mine"
    (row,) = convert_bags([tmp_path / "c1.h5"], out, ConvertSettings(to="clam", overwrite=True))
    assert row.outcome == "done"


def test_a_source_is_never_its_own_target(tmp_path: Path) -> None:
    folder = tmp_path / "inpl"
    write_bag(folder / "a.h5", make_bag(5))
    before = (folder / "a.h5").read_bytes()
    (row,) = convert_bags([folder / "a.h5"], folder, ConvertSettings(overwrite=True))
    assert "is read for this conversion and would be overwritten; use another --out" in row.reason
    assert (folder / "a.h5").read_bytes() == before
    with pytest.raises(InputError, match=r"is inside --out .*inpl, which is not searched"):
        convert_bags([folder], folder)


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_a_patches_file_that_changed_is_named(tmp_path: Path, layout: str) -> None:
    bag, out = make_bag(5, slide_id="c1"), tmp_path / "out"
    source = write_clam(tmp_path / "in", bag)
    patches = tmp_path / "in" / "patches" / "c1.h5"
    if layout == "trident":
        patches = patches.rename(patches.with_name("c1_patches.h5"))
        with h5py.File(patches, "a") as file:
            file["coords"].attrs["patch_size_level0"] = 256
    (row,) = convert_bags([source], out, ConvertSettings(to="tensors"))
    assert row.outcome == "done"
    with h5py.File(patches, "a") as file:
        file["coords"].attrs["patch_size" if layout == "clam" else "patch_size_level0"] = 128
    (row,) = convert_bags([source], out, ConvertSettings(to="tensors"))
    assert "another version of the patches file beside c1.h5" in row.reason
    (row,) = convert_bags([source], out, ConvertSettings(to="tensors", overwrite=True))
    assert (row.outcome, read_bag(out / "c1.safetensors").patch_size_level0) == ("done", 128)


def test_two_files_of_one_id_are_refused(tmp_path: Path) -> None:
    for name in ("a__b/x.h5", "a/b/x.h5"):
        write_bag(tmp_path / name, make_bag(5))
    with pytest.raises(InputError, match=r"x\.h5 and .*x\.h5 have the same id, 'a__b__x\.h5'; rename one"):
        convert_bags([tmp_path], tmp_path / "out", ConvertSettings(overwrite=True))
    again = [tmp_path / "a" / "b" / "x.h5", tmp_path / "a" / ".." / "a" / "b" / "x.h5"]
    assert [file.slide_id for file in find_features(again)] == ["x"]


def test_slides_that_share_a_stem_are_told_apart(tmp_path: Path) -> None:
    for name in ("x/a.h5", "y/a.h5", "y/b.h5", "y/out/c.h5"):
        write_bag(tmp_path / name, make_bag(5))
    found = find_features([tmp_path / "x", tmp_path / "y"], leave_out=tmp_path / "y" / "out")
    assert [file.slide_id for file in found] == ["x__a.h5", "y__a.h5", "b"]


def test_slides_supply_what_files_lack(tmp_path: Path) -> None:
    """The hook for a caller who can read slides."""
    source = write_stamp(tmp_path / "a.h5", make_bag(5))
    facts = {"a": (0.5, (5000, 4000))}
    (row,) = convert_bags([source], tmp_path / "out", facts=facts.__getitem__)
    assert row.outcome == "done"
    back = read_bag(tmp_path / "out" / "a.h5")
    assert (back.mpp, back.level0_size, back.patch_size_level0) == (0.5, (5000, 4000), 256)


def test_a_slide_is_asked_only_for_what_its_file_lacks(tmp_path: Path) -> None:
    asked: list[str] = []

    def facts(slide_id: str) -> tuple[float, tuple[int, int]]:
        asked.append(slide_id)
        return 0.25, (5000, 4000)

    whole = dataclasses.replace(make_bag(5), level0_size=(5000, 4000))
    for name, bag in (("a", whole), ("b", make_bag(5)), ("c", dataclasses.replace(whole, mpp=None))):
        write_bag(tmp_path / f"{name}.h5", bag)
    sources = [tmp_path / f"{name}.h5" for name in "abc"]
    a, b, c = convert_bags(sources, tmp_path / "out", facts=facts)
    assert (asked, a.outcome, c.outcome) == (["b", "c"], "done", "done")
    assert "b.h5: states 0.5 microns per pixel at level 0, but its slide (--slide) states 0.25; give" in b.reason
    assert [read_bag(tmp_path / "out" / f"{name}.h5").mpp for name in "ac"] == [0.5, 0.25]
    again = convert_bags(sources[::2], tmp_path / "out", facts=lambda _: (0.26, (5000, 4000)))
    assert again[0].outcome == "done"
    assert "another slide" in again[1].reason
    (row,) = convert_bags(sources[2:], tmp_path / "other", facts=lambda _: (0.5, (5000, 4001)))
    assert "states a slide of (5000, 4000) level-0 pixels, but its slide (--slide) has (5000, 4001)" in row.reason


def test_the_encoder_said_is_recorded_where_the_file_names_none(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", dataclasses.replace(make_bag(5), encoder=None))
    convert_bags([tmp_path / "a.h5"], tmp_path / "out", ConvertSettings(encoder="uni"))
    assert read_bag(tmp_path / "out" / "a.h5").encoder == "uni"


def test_names_that_are_no_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = tmp_path / os.fsdecode(b"caf\xe9")
    write_bag(tmp_path / "a.h5", make_bag(5))
    named.mkdir()
    (tmp_path / "a.h5").rename(named / os.fsdecode(b"x\xe9.h5"))
    (named / os.fsdecode(b"torn\xe9.h5")).write_text("torn")
    for to in ("trident", "clam", "tensors"):
        assert Convert(inputs=(named,), out=tmp_path / to, to=to).run() == 1
        table = pd.read_csv(tmp_path / to / "outcomes.csv")
        assert sorted(zip(table.slide_id, table.outcome, strict=True)) == [("torn\\xe9", "failed"), ("x\\xe9", "done")]
    assert "caf\\xe9" in capsys.readouterr().out
    assert read_bag(tmp_path / "trident" / "x\\xe9.h5").slide_id == "x\\xe9"


def test_the_config_reads_back_as_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bag(tmp_path / "a.h5", make_bag(5))
    verb = Convert(inputs=(tmp_path / "a.h5",), out=tmp_path / "out", to="tensors", level0_size=(5000, 4000))
    assert verb.run() == 0
    assert read_config(Convert, tmp_path / "out" / "config.json") == verb


def test_refusals_before_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"x\.h5: no such file"):
        convert_bags([tmp_path / "x.h5"], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no feature files \(\.csv, \.h5"):
        convert_bags([tmp_path / "empty"], out)
    write_bag(tmp_path / "a.h5", make_bag(5))
    for options, message in (
        ({"to": "wsidata"}, "--to is 'wsidata'; known: clam, stamp"),
        ({"override_mpp": -1.0}, "--override-mpp is -1; it must be a positive number"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert_bags([tmp_path / "a.h5"], out, ConvertSettings(**options))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"out: the folder cannot be created \(Not a directory\)"):
        convert_bags([tmp_path / "a.h5"], tmp_path / "a.h5" / "out")
    assert not out.exists()


# Pickles ---------------------------------------------------------------------------------------------------------


class Evil:
    """Runs a function when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def pickled(path: Path, value: object) -> Path:
    box = np.empty((), dtype=object)
    box[()] = value
    np.save(path, box, allow_pickle=True)
    return path


def test_what_the_child_claims_is_checked_before_memory_is_taken(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb+") as out:
        out.write(b'["features"]\n')
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (1 << 45,)})
        out.seek(0)
        with pytest.raises(BagError, match=r"a header claims 140737488355328 bytes, but 0 are left"):
            pickles._received(tmp_path / "a.npy", out)


@pytest.mark.slow
def test_an_array_that_torch_does_not_know_is_a_row(tmp_path: Path) -> None:
    pickled(tmp_path / "a.npy", {"feature": np.ones((3, 4), np.longdouble)})
    write_bag(tmp_path / "b.h5", make_bag(5))
    rows = convert_bags([tmp_path], tmp_path / "out", ConvertSettings(to="tensors", trust_pickle=True))
    assert [row.outcome for row in rows] == ["failed", "done"]
    assert "a.npy" in rows[0].reason


def test_a_pickle_is_refused_with_the_name_of_the_door(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickled(tmp_path / "a.npy", {"feature": np.ones((3, 4), np.float32), "x": Evil(os.mkdir, str(mark))})
    torch.save({"feature": Evil(os.mkdir, str(mark))}, tmp_path / "b.pt")
    for name in ("a.npy", "b.pt"):
        with pytest.raises(BagError, match=rf"{name}.*`abbe convert --trust-pickle`") as caught:
            read_bag(tmp_path / name)
        assert "weights_only" not in str(caught.value)  # torch's advice
    rows = convert_bags([tmp_path], tmp_path / "out", ConvertSettings(to="tensors"))
    assert [row.outcome for row in rows] == ["failed", "failed"]
    assert not mark.exists()


@pytest.mark.slow
def test_trusted_pickles_are_read_in_a_child(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    coords = np.stack([np.arange(6) * 256, np.zeros(6, int)], 1)
    mark = tmp_path / "environment"
    os.environ["ABBE_TEST_SECRET"] = "secret"
    try:
        source = tmp_path / "in"
        source.mkdir()
        pickled(source / "a.npy", {"feature": rows, "index": ["x"]})
        pickled(source / "b.npy", {"feature": rows, "coords": coords})
        torch.save({"feature": torch.from_numpy(rows), "coords": coords}, source / "c.pt")
        command = f"env > {mark}; echo noise"
        pickled(source / "d.npy", {"feature": rows, "x": Evil(os.system, command)})
        (source / "e.pkl").write_bytes(pickle.dumps(rows))
        outcomes = convert_bags(
            [source], tmp_path / "out", ConvertSettings(to="tensors", trust_pickle=True, patch_size_level0=256)
        )
    finally:
        del os.environ["ABBE_TEST_SECRET"]
    assert [(row.slide_id, row.outcome, row.reason) for row in outcomes] == [(name, "done", "") for name in "abcde"]
    for name in "abcde":
        bag = read_bag(tmp_path / "out" / f"{name}.safetensors")
        assert np.array_equal(bag.features.numpy(), rows)
        assert (bag.patch_size_level0 == 256) == (name in "bc")
    assert "ABBE_TEST_SECRET" not in mark.read_text()


@pytest.mark.slow
def test_a_pickle_that_kills_its_process_is_a_row(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    pickled(source / "a.npy", Evil(os._exit, 7))
    pickled(source / "b.npy", Evil(os.kill, 0, 9))
    pickled(source / "c.npy", {"embedding": np.ones(3)})
    pickled(source / "d.npy", {"feature": np.array([["a", "b"]])})
    pickled(source / "e.npy", {"feature": Evil(bytearray, 64 << 30)})
    write_bag(source / "f.h5", make_bag(5))
    outcomes = convert_bags([source], tmp_path / "out", ConvertSettings(to="tensors", trust_pickle=True))
    assert [row.outcome for row in outcomes] == ["failed"] * 5 + ["done"]
    for row, message in zip(
        outcomes,
        (
            "the child process exited with code 7",
            "the child process exited with code -9",
            "a dict without a key feature or features or feats or tile_embeds (found: embedding)",
            "an array of <U1; expected numbers",
            "MemoryError",
        ),
        strict=False,
    ):
        assert message in row.reason, row


@pytest.mark.slow
def test_a_pickle_that_takes_for_ever_is_stopped(tmp_path: Path) -> None:
    path = pickled(tmp_path / "a.npy", Evil(time.sleep, 3600))
    with pytest.raises(BagError, match=r"unpickling took more than 1 s and was stopped"):
        pickles.read_pickled(path, time_limit=1)
