"""Tensors in `.pt`, `.npy` and `.safetensors` files: the one `torch.load`, and nothing is ever unpickled here."""

from __future__ import annotations

import pickle
import re
import tokenize
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from abbe.errors import BagError

SUFFIXES = (".pt", ".pth", ".npy", ".safetensors")
_UNREADABLE = (RuntimeError, EOFError, ValueError, OSError, KeyError, TypeError)
NOT_NPY = (ValueError, OSError, SyntaxError, tokenize.TokenError)  # numpy parses the header as Python
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_DOOR = (
    "Nothing is unpickled here, because that runs the file's code; `abbe convert --trust-pickle` does it in a child "
    "process, for files whose origin you trust"
)


def load_pt(path: Path) -> Any:
    """What a `.pt` file holds: tensors, numbers, text, and lists or dicts of them. Memory-mapped where torch can.

    Raises BagError for anything that would have to be unpickled, and for what is no such file.
    """
    try:
        return _load(path)
    except pickle.UnpicklingError as error:
        if not _starts_like_one(path):
            raise BagError(f"{path}: not a file that torch.save wrote") from error
        named = _GLOBAL.search(str(error))
        what = f" (it names {named[1]})" if named else ""
        raise BagError(f"{path}: holds more than tensors{what}. {_DOOR}") from error
    except _UNREADABLE as error:
        said = " ".join(str(error).split())[:200]
        if "weights_only" in said:  # torch's advice is to run the file's code in this process
            said = "TorchScript, or the .tar of an early PyTorch; save its tensors again with torch.save"
        raise BagError(f"{path}: cannot be read as a .pt file ({said})") from error


def load_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, memory-mapped. BagError for one that is a pickle inside, or no such file."""
    if npy_header(path)[1].hasobject:
        raise BagError(f"{path}: an object array, which is a pickle inside. {_DOOR}")
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise BagError(f"{path}: cannot be read as a .npy file ({error})") from error


def npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype) of a `.npy` file, from its header alone."""
    try:
        with open(path, "rb") as file:
            return read_npy_header(file)
    except NOT_NPY as error:
        raise BagError(f"{path}: not a .npy file ({error})") from error


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype) of the array that starts here; the file then stands at its data. Raises one of NOT_NPY."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def load_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors by name, memory-mapped; metadata) of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BagError(f"{path}: cannot be read as a safetensors file ({error})") from error


def safetensors_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(shapes by name, metadata) of a safetensors file, without its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BagError(f"{path}: cannot be read as a safetensors file ({error})") from error


def saved_tensor(path: Path) -> torch.Tensor:
    """The one tensor of a `.pt`, `.npy` or `.safetensors` file. BagError for a dict, a list, or several."""
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(load_npy(path))
    if path.suffix.lower() == ".safetensors":
        tensors, _ = load_safetensors(path)
        if len(tensors) == 1:
            return next(iter(tensors.values()))
        if "features" in tensors:
            return tensors["features"]
        raise BagError(f"{path}: tensors {', '.join(tensors)}, and none is called 'features'")
    value = load_pt(path)
    if not isinstance(value, torch.Tensor):
        raise BagError(f"{path}: expected one tensor, found {describe(value)}")
    return value


def peek_tensor(path: Path) -> tuple[int, ...]:
    """The shape of what `saved_tensor` gives, as cheaply as the format lets."""
    if path.suffix.lower() == ".npy":
        shape, dtype = npy_header(path)
        if dtype.hasobject:
            raise BagError(f"{path}: an object array, which is a pickle inside. {_DOOR}")
        return shape
    if path.suffix.lower() == ".safetensors":
        shapes, _ = safetensors_header(path)
        if len(shapes) == 1 or "features" in shapes:
            return shapes.get("features") or next(iter(shapes.values()))
        raise BagError(f"{path}: tensors {', '.join(shapes)}, and none is called 'features'")
    return tuple(saved_tensor(path).shape)


def describe(value: Any) -> str:
    """What a loaded value is, in a few words."""
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, list(value)[:6])) or 'nothing'}"
    return f"a {type(value).__name__}"


def is_pickle(path: Path) -> bool:
    """Whether a file can only be read by unpickling it."""
    if path.suffix.lower() == ".npy":
        return npy_header(path)[1].hasobject
    if path.suffix.lower() in (".pt", ".pth"):
        try:
            _load(path)
        except pickle.UnpicklingError:
            return _starts_like_one(path)
        except _UNREADABLE:
            return False
    return path.suffix.lower() in (".pkl", ".pickle")


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about types of storage
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _starts_like_one(path: Path) -> bool:
    """Whether a file starts as a zip archive or a pickle does: what torch.save writes, now and formerly."""
    with open(path, "rb") as file:
        start = file.read(4)
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
