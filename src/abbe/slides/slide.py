"""Reads a slide in a child process: starts it, takes its frames, and kills it when time is up or the run stops."""

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
TIME_LIMIT = 3600.0  # seconds per slide
# -P: do not import a numpy.py or abbe/ from the user's current folder.
READER = (sys.executable, "-P", "-m", "abbe.slides.reader")
_HEADER_LIMIT = 1 << 20  # bytes
_POLL_SECONDS = 0.2  # between two checks of the time limit and of `halt`
_FRAMES_AHEAD = 4


@dataclass(frozen=True)
class Frame:
    """One answer of the child: its kind, header values and payload."""

    kind: str
    header: dict[str, Any]
    payload: bytes


Ahead = queue.Queue[Frame | Exception | None]
"""frames that were read ahead; None: the end"""


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
    """Frames of one job (see `abbe.slides.reader`) on one slide, read in a child process.

    Up to four frames are read ahead while the caller works. The child has ended when the context is left.

    Raises SlideError with stage and reason if the slide cannot be read, the child dies, `time_limit` (seconds for the
    whole job, including the caller's work) is exceeded, or another thread sets `halt`.
    """
    deadline = time.monotonic() + time_limit
    request = json.dumps({"job": job, "path": str(path), **options}).encode() + b"\n"
    ahead: Ahead = queue.Queue(_FRAMES_AHEAD)
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # its own process group: killed as a whole, and Ctrl-C does not reach it
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        reading = threading.Thread(target=_read_ahead, args=(child, errors, ahead), daemon=True)
        try:
            reading.start()
            with suppress(BrokenPipeError):  # the child died at once; the reading thread reports why
                child.stdin.write(request)
                child.stdin.flush()  # stays open: its end tells the child that the parent is gone
            yield _frames_until(ahead, deadline, time_limit, halt)
        finally:
            _kill(child)
            while reading.is_alive():  # it may be waiting for room in the queue
                with suppress(queue.Empty):
                    ahead.get(timeout=0.01)
            with suppress(BrokenPipeError):
                child.stdin.close()
            child.stdout.close()


def read_thumbnail(path: Path, *, side: int = 1600, time_limit: float = TIME_LIMIT) -> tuple[Pixels, float]:
    """The slide as uint8 [h, w, 3], about `side` pixels on its longer side, and level-0 pixels per pixel of it."""
    with read_slide("thumbnail", path, time_limit=time_limit, side=side) as frames:
        frame = next(frames)
    return np.frombuffer(frame.payload, np.uint8).reshape(frame.header["shape"]), float(frame.header["downsample"])


def read_regions(
    path: Path, coords: NDArray[Any], size_level0: float, *, side: int, time_limit: float = TIME_LIMIT
) -> Pixels:
    """The squares at coords [n, 2] (top-left, level-0 pixels), `size_level0` wide, as uint8 [n, side, side, 3]."""
    job = {"coords": np.asarray(coords).astype(int).tolist(), "size_level0": float(size_level0), "side": side}
    with read_slide("regions", path, time_limit=time_limit, **job) as frames:
        return np.frombuffer(next(frames).payload, np.uint8).reshape(-1, side, side, 3)


def _read_ahead(child: subprocess.Popen[bytes], errors: Any, ahead: Ahead) -> None:
    try:
        for frame in _frames(child, errors):
            ahead.put(frame)
        ahead.put(None)
    except Exception as error:  # noqa: BLE001  raised again in the caller's thread
        ahead.put(error)


def _frames_until(ahead: Ahead, deadline: float, time_limit: float, halt: threading.Event | None) -> Iterator[Frame]:
    while True:
        if halt is not None and halt.is_set():
            raise SlideError("interrupted", "the run was stopped; run the same command again to continue")
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise SlideError("time limit", f"not done after {time_limit:g} seconds; raise --time-limit")
        try:
            item = ahead.get(timeout=min(_POLL_SECONDS, remaining))
        except queue.Empty:
            continue
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        yield item


def _frames(child: subprocess.Popen[bytes], errors: Any) -> Iterator[Frame]:
    assert child.stdout is not None
    while True:
        head = child.stdout.read(4)
        size = struct.unpack("<I", head)[0] if len(head) == 4 else 0
        if size > _HEADER_LIMIT:
            raise SlideError("read", "the reader process sent something that is not a frame")
        text = child.stdout.read(size)
        header = json.loads(text) if text and len(text) == size else None
        payload = child.stdout.read(header["bytes"]) if header else b""
        if header is None or len(payload) != header["bytes"]:
            raise SlideError("read", _exit_reason(child, errors))
        if header["kind"] == "failed":
            raise SlideError(header["stage"], header["reason"])
        if header["kind"] == "end":
            return
        yield Frame(header["kind"], header, payload)


def _exit_reason(child: subprocess.Popen[bytes], errors: Any) -> str:
    """How the child ended, with the last line that it printed on stderr."""
    code = child.wait()
    errors.seek(0)
    lines = [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = f": {lines[-1].strip()}" if lines else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"the reader process was killed by {name}{last}"
    return f"the reader process ended with exit code {code}{last}"


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with suppress(ProcessLookupError):  # it ended between the two calls
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
