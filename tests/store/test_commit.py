from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from abbe.errors import StoreError
from abbe.store import commit
from abbe.store.verify import verify


def test_done_means_the_hash_verifies(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    assert commit.state(path) == "missing"
    commit.write_json(path, {"slots": 32}, format="test", source="x")
    assert commit.is_done(path)
    sidecar = commit.read_sidecar(path)
    assert sidecar is not None
    assert sidecar["size"] == path.stat().st_size
    assert sidecar["made_with"]["source"] == "x"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert commit.state(path) == "altered"
    path.write_bytes(data[:-1])
    assert commit.state(path) == "torn"
    commit.sidecar_path(path).unlink()
    assert commit.state(path) == "unsigned"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    commit.write_text(path, "old", format="test")

    def stop_half_way() -> None:
        with commit.commit(path, format="test", version=1) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert path.read_text() == "old"
    assert commit.is_done(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file.txt", "file.txt.sha256.json"]


def test_files_have_the_permissions_the_user_s_files_have(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    path = tmp_path / "x.bin"
    with commit.commit(path, format="test", version=1) as temporary:
        temporary.write_bytes(b"x")
        temporary.chmod(0o600)
    assert path.stat().st_mode == usual.stat().st_mode == commit.sidecar_path(path).stat().st_mode


def test_writing_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing was written"), commit.commit(tmp_path / "x", format="t", version=1):
        pass


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        commit.write_json(tmp_path / "x.json", float("nan"), format="test")


def test_a_broken_sidecar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    commit.write_text(path, "text", format="test")
    commit.sidecar_path(path).write_text("{}")
    with pytest.raises(StoreError, match=r"x\.txt\.sha256\.json: not a valid sidecar"):
        commit.state(path)


def test_the_order_on_disk_is_close_fsync_rename_fsync(tmp_path: Path) -> None:
    """What survives a power cut depends on this order; no audit hook sees fsync, so os is watched in a child."""
    script = """
import os, sys
from pathlib import Path
from abbe.store import commit
calls = []
fsync, replace = os.fsync, os.replace
def watched_fsync(fd):
    calls.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))); fsync(fd)
def watched_replace(self, target):
    calls.append("rename " + os.path.basename(target)); replace(self, target); return Path(target)
os.fsync, Path.replace = watched_fsync, watched_replace
commit.write_text(Path(sys.argv[1]) / "x.txt", "text", format="test")
print("\\n".join(calls))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    kinds = [line.split()[0] + (" folder" if line.endswith(tmp_path.name) else "") for line in done.stdout.splitlines()]
    assert kinds == ["fsync", "rename", "fsync folder"] * 2
    assert done.stdout.splitlines()[1] == "rename x.txt"
    assert done.stdout.splitlines()[4] == "rename x.txt.sha256.json"


def test_verify_finds_every_kind(tmp_path: Path) -> None:
    for name in ("good", "torn", "altered", "missing", "unreadable"):
        commit.write_text(tmp_path / f"{name}.txt", "text", format="test")
    (tmp_path / "torn.txt").write_text("te")
    (tmp_path / "altered.txt").write_text("text"[::-1])
    (tmp_path / "missing.txt").unlink()
    commit.sidecar_path(tmp_path / "unreadable.txt").write_text(json.dumps({"sha256": 1}))
    (tmp_path / "foreign.txt").write_text("mine")
    (tmp_path / ".x.00000000.tmp.h5").write_text("half")
    counted, found = verify(tmp_path)
    assert counted["done"] == 1
    assert dict(found) == {
        ".x.00000000.tmp.h5": "temporary",
        "altered.txt": "altered",
        "foreign.txt": "unsigned",
        "missing.txt": "missing",
        "torn.txt": "torn",
        "unreadable.txt": "sidecar",
    }


def test_only_temporaries_of_killed_runs_are_removed(tmp_path: Path) -> None:
    left = [".a.0123abcd.tmp.csv", ".a.csv.sha256.json.0123abcd.tmp", ".mine.tmp", "b.tmp", ".c.0123abcd.tmpx"]
    (tmp_path / "model").mkdir()
    for name in left:
        (tmp_path / "model" / name).write_text("x")
    commit.remove_temporaries(tmp_path)  # of its own files, not of those in folders below
    assert len(list((tmp_path / "model").iterdir())) == len(left)
    commit.remove_temporaries(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(left[2:])
