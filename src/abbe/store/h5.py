"""HDF5 files, read so that damage is a BagError which names the file and the dataset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from abbe.errors import BagError

SUFFIXES = (".h5", ".hdf5")
# h5py translates the errors of the HDF5 library into the first five; MemoryError: a damaged shape is too large.
_H5PY_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)
_CHUNK_ROWS = 1024


class H5Reader:
    """An open HDF5 file. Every method raises BagError for what is absent or cannot be read."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        with self._reading("the list of datasets"):
            names = list(file)
        # h5py returns a name that is not UTF-8 as bytes.
        self.names = [name if isinstance(name, str) else name.decode("utf-8", "backslashreplace") for name in names]

    def has(self, name: str) -> bool:
        """Whether there is a dataset (and not a group) of this name."""
        if name not in self.names:
            return False
        with self._reading(f"dataset {name!r}"):
            return isinstance(self._file.get(name), h5py.Dataset)

    def array(self, name: str) -> np.ndarray:
        """All of one dataset."""
        self._need(name)
        with self._reading(f"dataset {name!r}"):
            return np.asarray(self._file[name][()])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of one dataset."""
        self._need(name)
        with self._reading(f"dataset {name!r}, rows {start}:{stop}"):
            return np.asarray(self._file[name][start:stop])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a dataset, without reading it."""
        self._need(name)
        with self._reading(f"dataset {name!r}"):
            shape = self._file[name].shape
        if shape is None:
            raise BagError(f"{self.path}: dataset {name!r} has no shape")
        return tuple(shape)

    def attributes(self, name: str = "/") -> dict[str, Any]:
        """The attributes of a dataset, or of the file."""
        with self._reading(f"the attributes of {name!r}"):
            return dict(self._file[name].attrs)

    def _need(self, name: str) -> None:
        if not self.has(name):
            raise BagError(f"{self.path}: no dataset {name!r} (found: {', '.join(self.names) or 'nothing'})")

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except _H5PY_ERRORS as error:
            raise BagError(f"{self.path}: {what} cannot be read ({error})") from error


@contextmanager
def open_h5(path: Path) -> Iterator[H5Reader]:
    """Open an HDF5 file for reading. Raises BagError if it cannot be opened."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BagError(f"{path}: cannot be opened as HDF5 ({error})") from error
    with file:
        yield H5Reader(path, file)


def write_dataset(file: h5py.File, name: str, data: np.ndarray) -> h5py.Dataset:
    """Write a 2-D array in large chunks with a checksum each; an empty one without chunks."""
    rows, width = data.shape
    chunks = (min(rows, _CHUNK_ROWS), width) if rows and width else None
    return file.create_dataset(name, data=data, chunks=chunks, fletcher32=chunks is not None)
