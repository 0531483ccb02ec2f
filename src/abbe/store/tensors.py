"""Abbe's memory-mappable layout, one `.safetensors` a slide, and tensors that stand alone in a file.

`features` [N, D] and, where known, `coords` [N, 2] float64 in level-0 pixels; the geometry as JSON in the header. A
`.pt`, `.npy` or other `.safetensors` file with one tensor is read as a bare bag.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from abbe.errors import BagError
from abbe.store.commit import commit
from abbe.store.parts import Overrides, Peek, assemble, resolve_patch_size, shape_of
from abbe.store.saved import load_safetensors, peek_tensor, safetensors_header, saved_tensor
from abbe.types import Bag

NAME = "tensors"
SUFFIX = ".safetensors"
VERSION = 1
_HEADER = "abbe_bag"  # one key only: safetensors writes several in an order that changes from run to run
_NUMBERS = ("patch_size_level0", "stride_level0", "mpp", "level0_width", "level0_height")


def read(path: Path, given: Overrides) -> Bag:
    """A file of this layout, its features memory-mapped; or a bare bag from a file of one tensor."""
    if path.suffix.lower() != SUFFIX:
        return assemble(path, saved_tensor(path), None, None, given, name="tensor")
    tensors, header = load_safetensors(path)
    if _HEADER not in header and "coords" not in tensors:
        return assemble(path, saved_tensor(path), None, None, given, name="tensor")
    if "features" not in tensors:
        raise BagError(f"{path}: no tensor 'features' (found: {', '.join(tensors) or 'nothing'})")
    stated = _stated(path, header)
    numbers = {key: float(stated[key]) for key in _NUMBERS if key in stated}
    coords = tensors["coords"].double().numpy() if "coords" in tensors else None
    size = None
    if coords is not None:
        said_by = "patch_size_level0 in the header"
        why = "'coords' stands there, and no 'patch_size_level0' in the header"
        size = resolve_patch_size(path, numbers.get("patch_size_level0"), given, said_by=said_by, why_none=why)
    whole = "level0_width" in numbers and "level0_height" in numbers
    return assemble(
        path,
        tensors["features"],
        coords,
        size,
        given,
        stride=numbers.get("stride_level0"),
        mpp=numbers.get("mpp"),
        level0_size=(round(numbers["level0_width"]), round(numbers["level0_height"])) if whole else None,
        encoder=stated.get("encoder"),
    )


def peek(path: Path) -> Peek:
    """(N, D, encoder)."""
    n, width = shape_of(path, "features", peek_tensor(path))
    stated = _stated(path, safetensors_header(path)[1]) if path.suffix.lower() == SUFFIX else {}
    return n, width, stated.get("encoder")


def write(path: Path, bag: Bag, made_with: dict[str, Any] | None = None) -> None:
    """Commit any bag, with coordinates or without. BagError for a path that does not end in .safetensors."""
    if path.suffix.lower() != SUFFIX:
        raise BagError(f"{path}: the tensors layout is a {SUFFIX} file")
    width, height = bag.level0_size or (None, None)
    stated: dict[str, Any] = {
        "patch_size_level0": bag.patch_size_level0,
        "stride_level0": bag.stride_level0,
        "mpp": bag.mpp,
        "level0_width": width,
        "level0_height": height,
        "encoder": bag.encoder,
    }
    stated = {key: value for key, value in stated.items() if value is not None}
    tensors = {"features": bag.features.contiguous()}
    if bag.coords is not None:
        tensors["coords"] = bag.coords.contiguous()
    with commit(path, format="tensors-bag", version=VERSION, made_with=made_with) as temporary:
        save_file(tensors, temporary, {_HEADER: json.dumps({"version": VERSION, "slide_id": bag.slide_id, **stated})})


def _stated(path: Path, header: dict[str, str]) -> dict[str, Any]:
    """What the header says; nothing for a file that is not of this layout. BagError for a value that cannot be."""
    try:
        stated = json.loads(header.get(_HEADER, "{}"))
        wrong = [key for key in _NUMBERS if not isinstance(stated.get(key, 1), int | float)]
    except (ValueError, AttributeError) as error:
        raise BagError(f"{path}: {_HEADER!r} in the header is not JSON of an object ({error})") from error
    if wrong:
        raise BagError(f"{path}: {wrong[0]!r} in the header is {stated[wrong[0]]!r}; expected a number")
    return dict(stated)
