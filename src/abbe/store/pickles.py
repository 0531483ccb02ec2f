"""Arrays from a pickle, unpickled in a child process: the only place where code from a file may run, on request only.

Unpickling runs any code the file contains, with the rights of the user: it can read and delete files and use the
network. The child has an empty environment and limits on time, memory and file size, and returns only plain arrays.
That contains accidents, not attackers.

The child is `python -P -m abbe.store.pickles FILE`; it writes one line of JSON to stdout and then each array as .npy.
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

    RUNS CODE FROM THE FILE in a child process. Raises BagError if the child is killed, exceeds a limit, or finds no
    features.
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
                os.killpg(child.pid, signal.SIGKILL)  # and the processes it started
            child.wait()
        if code != 0:
            err.seek(0)
            last_line = err.read().decode("utf-8", "replace").strip().split("\n")[-1][:300] or "no output"
            raise BagError(f"{path}: unpickling failed: the child process exited with code {code} ({last_line})")
        out.seek(0)
        return _received(path, out)


def _received(path: Path, out: IO[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    """The arrays that the child wrote. Its output is not trusted: anything but plain arrays is refused."""
    from abbe.store.saved import NPY_ERRORS  # imports torch, which the child may not need

    try:
        names = json.loads(out.readline(1000))
    except (ValueError, RecursionError) as error:
        raise BagError(f"{path}: the child process did not return the names of arrays ({error})") from error
    if names not in (["features"], ["features", "coords"]):
        raise BagError(f"{path}: the child process returned {str(names)[:80]}; expected features and coords")
    try:
        arrays = [_array(out) for _ in names]
    except NPY_ERRORS as error:
        raise BagError(f"{path}: the child process did not return arrays ({error})") from error
    return arrays[0], arrays[1] if len(arrays) > 1 else None


def _array(out: IO[bytes]) -> np.ndarray:
    """The next array. Raises one of NPY_ERRORS; before allocating memory if the header claims more than there is."""
    from abbe.store.saved import read_npy_header

    start = out.tell()
    shape, dtype = read_npy_header(out)
    claimed, left = math.prod(shape) * dtype.itemsize, os.fstat(out.fileno()).st_size - out.tell()
    if claimed > left:
        raise ValueError(f"a header claims {claimed} bytes, but {left} are left")
    out.seek(start)
    return np.asarray(np.lib.format.read_array(out, allow_pickle=False))


def _child(path: Path) -> None:
    """Unpickle, and write the arrays to stdout; what the file's code prints goes to stderr."""
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
        return pickle.load(file)  # noqa: S301  the purpose of this process


def _arrays(value: Any) -> dict[str, np.ndarray]:
    """Features, and coords if there are any. Raises ValueError if there are no features."""
    if not isinstance(value, dict):
        return {"features": _plain(value)}
    key = next((name for name in _FEATURES if name in value), None)
    if key is None:
        names = ", ".join(map(str, list(value)[:6]))
        raise ValueError(f"a dict without a key {' or '.join(_FEATURES)} (found: {names or 'nothing'})")
    arrays = {"features": _plain(value[key])}
    if value.get("coords") is not None:
        arrays["coords"] = _plain(value["coords"])
    return arrays


def _plain(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype == object:  # a list of rows
        array = np.stack([np.asarray(row) for row in array])
    if array.dtype.kind not in "fiu":
        raise ValueError(f"an array of {array.dtype}; expected numbers")
    return array


if __name__ == "__main__":
    try:
        _child(Path(sys.argv[1]))
    except Exception as error:  # noqa: BLE001  the parent reads the last line of stderr
        sys.exit(f"{type(error).__name__}: {error}")
