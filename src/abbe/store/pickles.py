"""Arrays out of a pickle, by a child process: the only place where a file's own code may run, and only when asked for.

Unpickling runs whatever the file says, with the rights of whoever starts it: it can read and delete files and use the
network. The child keeps it away from this process's memory and secrets: it gets an empty environment, limits of time,
memory and file size, and hands back nothing but plain arrays. That contains accidents, not attackers.

The child is `python -P -m abbe.store.pickles FILE`; it writes to stdout one line of JSON and then each array as .npy.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from abbe.errors import BagError

SUFFIXES = (".npy", ".pt", ".pth", ".pkl", ".pickle")
TIME_LIMIT = 300.0
"""seconds"""
_MEMORY = 16 << 30  # bytes of address space; torch alone maps several
_LARGEST = 8 << 30  # bytes the child may write
_FEATURES = ("feature", "features", "feats", "tile_embeds")


def read_pickled(path: Path, *, time_limit: float = TIME_LIMIT) -> tuple[np.ndarray, np.ndarray | None]:
    """(features, coords or None) of a pickled array, or of a dict with `feature` (and `coords`).

    RUNS THE FILE'S CODE, in a child process. Raises BagError where the child is killed, runs out of time or memory, or
    finds no features.
    """
    command = [sys.executable, "-P", "-m", "abbe.store.pickles", str(path.resolve())]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            code = child.wait(time_limit)
        except subprocess.TimeoutExpired as error:
            raise BagError(f"{path}: unpickling took more than {time_limit:g} s and was stopped") from error
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # whatever it may have started too
            child.wait()
        if code != 0:
            err.seek(0)
            said = err.read().decode("utf-8", "replace").strip().split("\n")[-1][:300]
            raise BagError(
                f"{path}: unpickling failed, the child process ended with code {code} ({said or 'silently'})"
            )
        out.seek(0)
        return _taken(path, out)


def _taken(path: Path, out: IO[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    """What the child wrote. It is not believed: anything that is no plain array is refused."""
    from abbe.store.saved import NOT_NPY  # with torch, which the child may not need

    try:
        names = json.loads(out.readline(1000))
        arrays = {name: _array(out) for name in names}
        return arrays["features"], arrays.get("coords")
    except (*NOT_NPY, KeyError, TypeError, EOFError) as error:
        raise BagError(f"{path}: what the child process handed back are no arrays ({error})") from error


def _array(out: IO[bytes]) -> np.ndarray:
    """The next array. ValueError, before memory is taken for it, where it is said to be larger than what is there."""
    from abbe.store.saved import read_npy_header

    start = out.tell()
    shape, dtype = read_npy_header(out)
    claimed, left = math.prod(shape) * dtype.itemsize, os.fstat(out.fileno()).st_size - out.tell()
    if claimed > left:
        raise ValueError(f"one says it has {claimed} bytes, and {left} are there")
    out.seek(start)
    return np.asarray(np.lib.format.read_array(out, allow_pickle=False))


def _child(path: Path) -> None:
    """Unpickle and write to what was stdout; anything the file prints goes to stderr instead."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for limit, value in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_FSIZE, _LARGEST),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    arrays = _arrays(_unpickled(path))
    with out:
        out.write(json.dumps(list(arrays)).encode() + b"\n")
        for array in arrays.values():
            np.lib.format.write_array(out, array, allow_pickle=False)


def _unpickled(path: Path) -> Any:
    if path.suffix.lower() == ".npy":
        value = np.load(path, allow_pickle=True)
        return value.item() if value.dtype == object and value.ndim == 0 else value
    if path.suffix.lower() in (".pt", ".pth"):
        import torch

        return torch.load(path, map_location="cpu", weights_only=False)
    with open(path, "rb") as file:
        return pickle.load(file)  # noqa: S301  # what this process is for


def _arrays(value: Any) -> dict[str, np.ndarray]:
    """Features, and coords where there are any. ValueError where no features are found."""
    if not isinstance(value, dict):
        return {"features": _plain(value)}
    key = next((name for name in _FEATURES if name in value), None)
    if key is None:
        names = ", ".join(map(str, list(value)[:6]))
        raise ValueError(f"a dict without {' or '.join(_FEATURES[:3])} (found: {names or 'nothing'})")
    arrays = {"features": _plain(value[key])}
    if value.get("coords") is not None:
        arrays["coords"] = _plain(value["coords"])
    return arrays


def _plain(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype == object:  # rows that were kept one by one
        array = np.stack([np.asarray(row) for row in array])
    if array.dtype.kind not in "fiu":
        raise ValueError(f"an array of {array.dtype}, not of numbers")
    return array


if __name__ == "__main__":
    try:
        _child(Path(sys.argv[1]))
    except Exception as error:  # noqa: BLE001  # the parent reads the last line of stderr
        sys.exit(f"{type(error).__name__}: {error}")
