"""Tensors in `.pt`, `.npy` and `.safetensors` files: the only `torch.load`, and nothing is unpickled here."""

from __future__ import annotations

import pickle
import re
import struct
import tokenize
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from abbe.errors import BagError

SUFFIXES = (".pt", ".pth", ".npy", ".safetensors")
# What torch.load raises for damaged bytes: its restricted unpickler is Python code that does not check its input, and
# a file with the suffix .safetensors is passed on.
_TORCH_ERRORS = (
    OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    AssertionError, MemoryError, struct.error, SafetensorError,
)  # fmt: skip
NPY_ERRORS = (ValueError, TypeError, OverflowError, OSError, SyntaxError, tokenize.TokenError)
"""what numpy raises for a damaged .npy file; it parses the header as Python"""
_COORDS = {
    torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_TRUST = (
    "Abbe does not unpickle it, because that runs code from the file; `abbe convert --trust-pickle` does so in a "
    "child process, for files from a source that you trust"
)


def load_pt(path: Path) -> Any:
    """The content of a `.pt` file: tensors, numbers, text, and lists or dicts of them. Memory-mapped if possible.

    Raises BagError for a file that needs unpickling, is damaged, or was not written by torch.save.
    """
    try:
        return _load(path)
    except pickle.UnpicklingError as error:
        if not _has_magic(path):
            raise BagError(f"{path}: not a file that torch.save wrote") from error
        named = _GLOBAL.search(str(error))
        what = f" ({named[1]})" if named else ""
        raise BagError(f"{path}: contains objects that are not tensors{what}. {_TRUST}") from error
    except _TORCH_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        if "weights_only" in reason:  # torch advises to run the file's code in this process
            reason = "TorchScript, or the .tar of an early PyTorch; save its tensors again with torch.save"
        raise BagError(f"{path}: cannot be read as a .pt file ({reason})") from error


def load_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, memory-mapped. Raises BagError for an object array or a damaged file."""
    _npy_shape(path)
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except NPY_ERRORS as error:
        raise BagError(f"{path}: cannot be read as a .npy file ({error})") from error


def npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype) of a `.npy` file, from its header alone."""
    try:
        with open(path, "rb") as file:
            return read_npy_header(file)
    except NPY_ERRORS as error:
        raise BagError(f"{path}: not a .npy file ({error})") from error


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype) of the array that starts here; moves the file to its data. Raises one of NPY_ERRORS."""
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


def saved_tensor(path: Path) -> torch.Tensor | np.ndarray:
    """The only tensor of a `.pt`, `.npy` or `.safetensors` file, or the one named "features". Raises BagError."""
    if path.suffix.lower() == ".npy":
        return load_npy(path)
    if path.suffix.lower() == ".safetensors":
        tensors, _ = load_safetensors(path)
        if len(tensors) == 1:
            return next(iter(tensors.values()))
        if "features" in tensors:
            return tensors["features"]
        raise BagError(f"{path}: no tensor 'features' (found: {', '.join(tensors) or 'nothing'})")
    value = load_pt(path)
    if not isinstance(value, torch.Tensor):
        raise BagError(f"{path}: expected one tensor, found {describe(value)}")
    return dense(path, "tensor", value)


def peek_tensor(path: Path) -> tuple[int, ...]:
    """The shape of what `saved_tensor` returns; reads only the header where the format has one."""
    if path.suffix.lower() == ".npy":
        return _npy_shape(path)
    if path.suffix.lower() == ".safetensors":
        shapes, _ = safetensors_header(path)
        if "features" in shapes:
            return shapes["features"]
        if len(shapes) == 1:
            return next(iter(shapes.values()))
        raise BagError(f"{path}: no tensor 'features' (found: {', '.join(shapes) or 'nothing'})")
    return tuple(saved_tensor(path).shape)


def dense(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its gradient. Raises BagError for a sparse, nested, quantised or meta tensor."""
    plain = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)
    if not plain:
        raise BagError(f"{path}: {name!r} is not a dense tensor; save it again as one")
    return tensor.detach()


def coords_array(path: Path, tensor: torch.Tensor) -> np.ndarray:
    """A tensor of coordinates as float64. Raises BagError for a type that is not an integer or a float."""
    if tensor.dtype not in _COORDS:
        raise BagError(f"{path}: 'coords' is {tensor.dtype}; expected integers or floats")
    return np.asarray(dense(path, "coords", tensor).double().numpy())


def describe(value: Any) -> str:
    """The type of a loaded value, and the first keys of a dict."""
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, list(value)[:6])) or 'nothing'}"
    return f"a {type(value).__name__}"


def is_pickle(path: Path) -> bool:
    """Whether a file can only be read by unpickling it. Raises BagError for a damaged .npy header."""
    if path.suffix.lower() == ".npy":
        return npy_header(path)[1].hasobject
    if path.suffix.lower() in (".pt", ".pth"):
        try:
            _load(path)
        except pickle.UnpicklingError:
            return _has_magic(path)
        except _TORCH_ERRORS:
            return False
    return path.suffix.lower() in (".pkl", ".pickle")


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about storage types
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _npy_shape(path: Path) -> tuple[int, ...]:
    shape, dtype = npy_header(path)
    if dtype.hasobject:
        raise BagError(f"{path}: an object array, which is stored as a pickle. {_TRUST}")
    return shape


def _has_magic(path: Path) -> bool:
    """Whether a file starts as torch.save writes it: as a zip archive, or (before PyTorch 1.6) as a pickle."""
    with open(path, "rb") as file:
        start = file.read(4)
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
