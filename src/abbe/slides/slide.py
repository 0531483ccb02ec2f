"""The parent's side of reading a slide: starts the child process, takes its frames, kills it when it is over time."""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abbe.errors import SlideError

Pixels = NDArray[np.uint8]
TIME_LIMIT = 3600.0  # seconds a slide may take
# -P: a numpy.py or abbe/ that lies in the user's current folder must not be imported.
READER = (sys.executable, "-P", "-m", "abbe.slides.reader")
_HEADER_LIMIT = 1 << 20  # bytes
_GLANCE = 0.2  # seconds between two looks at the clock and at `halt`
_AHEAD = 4  # frames read while the caller is at work on one


@dataclass(frozen=True)
class Frame:
    """One answer of the child: what it is, its values, its bytes."""

    kind: str
    header: dict[str, Any]
    payload: bytes


@contextmanager
def read_slide(
    job: str,
    path: Path,
    *,
    time_limit: float = TIME_LIMIT,
    halt: threading.Event | None = None,
    command: Sequence[str] = READER,
    **options: Any,
) -> Iterator[Iterator[Frame]]:
    """Frames of one job (see `abbe.slides.reader`) on one slide, read in a process of its own.

    Up to four frames are read ahead, so that reading goes on while the caller works.

    Raises SlideError with stage and reason where the slide cannot be read, the child dies, `time_limit` (seconds,
    over the whole job, the caller's own work included) has passed, or `halt` is set by another thread. On leaving, the
    child is gone.
    """
    request = json.dumps({"job": job, "path": str(path), **options}).encode() + b"\n"
    killed: list[SlideError] = []  # why, once it is killed
    done = threading.Event()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # its own group: a kill takes whatever it started, Ctrl-C is ours to pass on
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

        def watch() -> None:
            deadline = time.monotonic() + time_limit
            while not done.wait(min(_GLANCE, max(0.0, deadline - time.monotonic()))):
                if halt is not None and halt.is_set():
                    killed.append(SlideError("interrupted", "the run was stopped; the same command goes on from here"))
                elif time.monotonic() >= deadline:
                    reason = f"not done after {time_limit:g} seconds; --time-limit gives it more"
                    killed.append(SlideError("time limit", reason))
                if killed:
                    _kill(child)
                    return

        ahead: queue.Queue[Frame | Exception | None] = queue.Queue(_AHEAD)  # None: the end
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        reading = threading.Thread(target=_read_ahead, args=(_frames(child, errors, killed), ahead, done), daemon=True)
        try:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it died at once; what follows says why
                child.stdin.write(request)
                child.stdin.flush()  # and left open: its end tells the child that we are gone
            reading.start()
            yield _taken(ahead, killed)
        finally:
            done.set()
            watcher.join()
            _kill(child)
            child.wait()
            if reading.ident is not None:
                reading.join()  # the child's end is the end of what it reads
            assert child.stdin is not None
            assert child.stdout is not None
            with suppress(BrokenPipeError):
                child.stdin.close()
            child.stdout.close()


def read_thumbnail(path: Path, *, side: int = 1600, time_limit: float = TIME_LIMIT) -> tuple[Pixels, float]:
    """(uint8 [h, w, 3] of at most about `side` pixels, level-0 pixels a thumbnail pixel)."""
    with read_slide("thumbnail", path, time_limit=time_limit, side=side) as frames:
        for frame in frames:
            pixels = np.frombuffer(frame.payload, np.uint8).reshape(frame.header["shape"])
            return pixels, float(frame.header["downsample"])
    raise SlideError("read", "the reader sent no thumbnail")


def read_regions(
    path: Path, coords: NDArray[Any], size_level0: float, *, side: int, time_limit: float = TIME_LIMIT
) -> Pixels:
    """uint8 [n, side, side, 3]: the squares at coords [n, 2] (top-left, level-0 pixels) of `size_level0` pixels."""
    corners = np.asarray(coords).astype(int).tolist()
    job = {"coords": corners, "size_level0": float(size_level0), "side": side}
    with read_slide("regions", path, time_limit=time_limit, **job) as frames:
        for frame in frames:
            return np.frombuffer(frame.payload, np.uint8).reshape(-1, side, side, 3)
    raise SlideError("read", "the reader sent no regions")


def _read_ahead(frames: Iterator[Frame], ahead: queue.Queue[Frame | Exception | None], done: threading.Event) -> None:
    def put(item: Frame | Exception | None) -> None:
        while not done.is_set():
            with suppress(queue.Full):
                ahead.put(item, timeout=_GLANCE)
                return

    try:
        for frame in frames:
            put(frame)
            if done.is_set():
                return
        put(None)
    except Exception as error:  # noqa: BLE001  raised where the frame is taken
        put(error)


def _taken(ahead: queue.Queue[Frame | Exception | None], killed: list[SlideError]) -> Iterator[Frame]:
    while True:
        item = ahead.get()
        if killed:
            raise killed[0]
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        yield item


def _frames(child: subprocess.Popen[bytes], errors: Any, killed: list[SlideError]) -> Iterator[Frame]:
    assert child.stdout is not None
    while True:
        head = child.stdout.read(4)
        size = struct.unpack("<I", head)[0] if len(head) == 4 else 0
        if size > _HEADER_LIMIT:
            raise SlideError("read", "the reader process sent something that is no frame")
        text = child.stdout.read(size)
        header = json.loads(text) if text and len(text) == size else None
        payload = child.stdout.read(header["bytes"]) if header else b""
        if killed:
            raise killed[0]
        if header is None or len(payload) != header["bytes"]:
            raise SlideError("read", _death(child, errors))
        if header["kind"] == "failed":
            raise SlideError(header["stage"], header["reason"])
        if header["kind"] == "end":
            return
        yield Frame(header["kind"], header, payload)


def _death(child: subprocess.Popen[bytes], errors: Any) -> str:
    """Why the child's answers broke off."""
    code = child.wait()
    errors.seek(0)
    lines = [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    said = f": {lines[-1].strip()}" if lines else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"the reader process died of {name}{said}"
    return f"the reader process ended with exit code {code}{said}"


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with suppress(ProcessLookupError):  # it ended between the question and the signal
            os.killpg(child.pid, signal.SIGKILL)
