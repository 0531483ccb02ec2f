"""`abbe encode` killed with SIGKILL at random moments: nothing half-written counts, and the end is as if undisturbed.

ABBE_KILLS=50 python -m pytest tests/slides/test_killed.py -s    kills 50 times and prints what they hit
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from abbe.phantom.layout import Layout
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import GLASS, site_stain
from abbe.store.commit import SIDECAR, is_done
from slides.painted import paint, rows

KILLS = int(os.environ.get("ABBE_KILLS", "4"))


class Runs:
    """One command, run again and again on one folder, and what an undisturbed run of it left there."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        words = ["encode", str(folder / "slides"), "--out", str(self.out), "--workers", "2"]
        self.command = [sys.executable, "-m", "abbe.cli", *words]
        start = time.monotonic()
        self.finish()
        self.seconds = time.monotonic() - start
        self.rows = self.outcomes()
        self.files = {path.relative_to(self.out): path.read_bytes() for path in self.outputs()}
        shutil.rmtree(self.out)

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self.command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def finish(self) -> None:
        assert self.start().wait(timeout=900) == 1  # one of the slides is broken

    def outcomes(self) -> list[dict[str, str]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(self.out)]

    def outputs(self) -> list[Path]:
        """Every file of a slide with its sidecar, but no temporary one."""
        return [path for path in sorted(self.out.rglob("*.h5*")) if not path.name.startswith(".")]

    def check_what_is_done(self) -> None:
        """Every file whose sidecar verifies is the undisturbed run's; both are there or the file counts for nothing."""
        for path in self.out.rglob("*"):
            if path.suffix == ".h5" and is_done(path):
                for file in (path, path.with_name(path.name + SIDECAR)):
                    assert file.read_bytes() == self.files[file.relative_to(self.out)], file
        if is_done(self.out / "outcomes.csv"):
            assert self.outcomes() == self.rows

    def check_the_end(self) -> None:
        assert {path.relative_to(self.out): path.read_bytes() for path in self.outputs()} == self.files
        assert self.outcomes() == self.rows
        self.check_what_is_done()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Four phantom slides of 1280 × 1024 pixels, one without tissue, one broken."""
    folder = tmp_path_factory.mktemp("killed")
    for number in range(4):
        classes = np.full((4, 5), GLASS, np.uint8)
        classes[1:4, 1:4] = [[2, 5, 2], [9, number, 2], [5, 5, 9]]
        write_phantom_slide(folder, f"p{number}", Layout(classes), stain=site_stain(2, 1, 0), seed=number)
    paint(folder / "slides" / "blank.tiff", blank=True)
    (folder / "slides" / "broken.svs").write_bytes(b"II*\0" + bytes(100))
    return Runs(folder)


def children_of(pid: int) -> list[int]:
    """Children of all threads of a process; none once it is gone."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:  # that thread has just ended
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def litter(out: Path) -> set[str]:
    """What a kill in the middle of writing leaves: temporary files, and files without a sidecar."""
    files = {str(path) for path in out.rglob("*") if path.is_file()}
    temporary = {path for path in files if Path(path).name.startswith(".")}
    return temporary | {path for path in files - temporary if SIDECAR not in path and path + SIDECAR not in files}


def wait_for_writing(run: subprocess.Popen[bytes], out: Path, before: set[str], draw: random.Random) -> None:
    """Return within three milliseconds after some file, not always the first, is seen half-written."""
    chosen, seen = draw.randrange(6), set(before)
    while run.poll() is None:
        seen |= litter(out)
        if len(seen - before) > chosen:
            time.sleep(draw.uniform(0, 0.003))
            return


def kill_once(runs: Runs, draw: random.Random, *, aimed: bool) -> str:
    """Start the command, kill it, and say what that hit. aimed: at a moment of writing, which uniform draws miss."""
    before = litter(runs.out)
    run = runs.start()
    if aimed:
        wait_for_writing(run, runs.out, before, draw)
    else:
        until = time.monotonic() + draw.uniform(0, runs.seconds)
        while run.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
    readers = children_of(run.pid)
    run.kill()
    if run.wait() != -9:
        return "ended before"
    deadline = time.monotonic() + 600
    while any(map(alive, readers)):
        assert time.monotonic() < deadline, "a reader outlived the run"
        time.sleep(0.01)
    if litter(runs.out) - before:
        return "writing"
    return "reading" if readers else "start or between"


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_killed_at_random_moments_the_end_is_the_same(runs: Runs) -> None:
    draw = random.Random(0)
    hit: Counter[str] = Counter()
    # A kill that is aimed at writing may come too late: go on until one has hit it.
    while sum(hit.values()) - hit["ended before"] < KILLS or not hit["writing"]:
        assert sum(hit.values()) < 5 * KILLS, f"hardly a kill hits: {dict(hit)}"
        kind = kill_once(runs, draw, aimed=sum(hit.values()) % 3 == 2)
        hit[kind] += 1
        if kind == "ended before":  # whole: start afresh
            runs.check_the_end()
            shutil.rmtree(runs.out)
        elif runs.out.exists():
            runs.check_what_is_done()
    runs.finish()
    runs.check_the_end()
    print(f"\n{sum(hit.values()) - hit['ended before']} kills, undisturbed {runs.seconds:.1f} s: {dict(hit)}")  # noqa: T201
    assert hit["reading"] > 0
    assert hit["writing"] > 0
