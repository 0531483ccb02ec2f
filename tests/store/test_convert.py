"""`abbe convert`, and pickles behind their one door."""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from abbe.config import read_config
from abbe.errors import BagError, ConfigError, InputError
from abbe.store import pickles
from abbe.store.bags import read_bag, write_bag
from abbe.store.commit import is_done, read_sidecar
from abbe.store.convert import Convert, Facts, convert_bags
from abbe.store.inputs import find_features
from builders import make_bag, write_clam, write_slidechat, write_stamp


def test_a_folder_of_all_sorts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_clam(source / "clam", make_bag(25, slide_id="a"))
    write_stamp(source / "b.h5", make_bag(12))
    write_slidechat(source / "c.csv", np.ones((3, 512)))
    write_bag(source / "d.h5", make_bag(0))
    (source / "labels.csv").write_text("slide_id,label\na,b\n")
    (source / "e.h5").write_text("torn")
    assert Convert((source,), out, to="tensors", override_mpp=0.5, json=True).run() == 1
    printed = json.loads(capsys.readouterr().out)
    table = pd.read_csv(out / "outcomes.csv", keep_default_na=False)
    rows = {(row.slide_id, row.outcome): row for row in table.itertuples()}
    assert len(printed) == len(table) == 8
    assert rows["a", "done"].patches == 25
    assert rows["d", "empty"].patches == 0
    skipped = table[table.outcome == "skipped"]
    assert sorted(skipped.reason) == [
        "patches without features",
        "the same features stand in h5_files, with their coordinates",
    ]
    assert "cannot be opened as HDF5" in rows["e", "failed"].reason
    assert "a table, and not one of features" in rows["labels", "failed"].reason
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
    assert read_config(Convert, out / "config.json") == Convert((source,), out, to="tensors", override_mpp=0.5)


def test_the_same_command_again_makes_nothing_again(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "ab":
        write_bag(source / f"{name}.h5", make_bag(5))
    convert_bags([source], out, to="clam")
    made = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*.h5"))}
    assert len(made) == 4
    again = convert_bags([source], out, to="clam")
    assert [(row.outcome, row.patches) for row in again] == [("done", 5)] * 2
    assert {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*.h5"))} == made
    (out / "patches" / "a.h5").unlink()
    (out / "h5_files" / "b.h5").write_bytes(b"torn")
    convert_bags([source], out, to="clam")
    assert all(is_done(path) for path in made)


def test_a_source_that_changed_is_named(tmp_path: Path) -> None:
    source, out = tmp_path / "a.h5", tmp_path / "out"
    write_bag(source, make_bag(5))
    convert_bags([source], out, to="tensors")
    write_bag(source, make_bag(6))
    (row,) = convert_bags([source], out, to="tensors")
    assert (row.outcome, row.stage) == ("failed", "resume")
    assert "was made from another version of a.h5; --overwrite" in row.reason
    assert len(read_bag(out / "a.safetensors")) == 5
    (row,) = convert_bags([source], out, to="tensors", overwrite=True)
    assert (row.outcome, row.patches) == ("done", 6)
    (row,) = convert_bags([source], out, to="tensors", override_mpp=0.3)
    assert "was made from other options" in row.reason


def test_a_foreign_file_is_not_replaced(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", make_bag(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.h5").write_text("mine")
    (row,) = convert_bags([tmp_path / "a.h5"], tmp_path / "out")
    assert (row.outcome, (tmp_path / "out" / "a.h5").read_text()) == ("failed", "mine")
    assert "without a sidecar" in row.reason


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


@dataclass(frozen=True)
class WithSlides(Convert):
    """A verb built on this one."""

    slide: tuple[Path, ...] = ()

    def facts(self) -> Facts:
        return lambda _: (0.5, None)


def test_what_a_verb_adds_is_in_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb = WithSlides((write_stamp(tmp_path / "a.h5", make_bag(5)),), tmp_path / "out", slide=(tmp_path,))
    assert verb.run() == 0
    assert read_config(WithSlides, tmp_path / "out" / "config.json") == verb


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
        ({"override_mpp": -1.0}, "--override-mpp is -1; expected a positive number"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert_bags([tmp_path / "a.h5"], out, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no folder can be made there"):
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


def test_a_pickle_is_refused_with_the_name_of_the_door(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickled(tmp_path / "a.npy", {"feature": np.ones((3, 4), np.float32), "x": Evil(os.mkdir, str(mark))})
    torch.save({"feature": Evil(os.mkdir, str(mark))}, tmp_path / "b.pt")
    for name in ("a.npy", "b.pt"):
        with pytest.raises(BagError, match=rf"{name}.*`abbe convert --trust-pickle`"):
            read_bag(tmp_path / name)
    rows = convert_bags([tmp_path], tmp_path / "out", to="tensors")
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
        outcomes = convert_bags([source], tmp_path / "out", to="tensors", trust_pickle=True, patch_size_level0=256)
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
    outcomes = convert_bags([source], tmp_path / "out", to="tensors", trust_pickle=True)
    assert [row.outcome for row in outcomes] == ["failed"] * 5 + ["done"]
    for row, message in zip(
        outcomes,
        (
            "the child process ended with code 7",
            "the child process ended with code -9",
            "a dict without feature or features or feats (found: embedding)",
            "an array of <U1, not of numbers",
            "MemoryError",
        ),
        strict=False,
    ):
        assert message in row.reason, row


@pytest.mark.slow
def test_a_pickle_that_takes_for_ever_is_stopped(tmp_path: Path) -> None:
    path = pickled(tmp_path / "a.npy", Evil(time.sleep, 60))
    started = time.monotonic()
    with pytest.raises(BagError, match=r"unpickling took more than 1 s and was stopped"):
        pickles.read_pickled(path, time_limit=1)
    assert time.monotonic() - started < 30
