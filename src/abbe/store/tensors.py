"""Abbe's memory-mapped layout, one `.safetensors` file per slide; and files of a single tensor.

`features` [N, D] and, if known, `coords` [N, 2] float64 in level-0 pixels; the geometry as JSON in the header. A `.pt`,
`.npy` or other `.safetensors` file with one tensor is read as a bare bag.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from abbe.errors import BagError
from abbe.store.commit import commit
from abbe.store.kind import Kind, parse_kind
from abbe.store.parts import Overrides, Peek, assemble, number, resolve_patch_size, shape_of
from abbe.store.saved import coords_array, load_safetensors, peek_tensor, safetensors_header, saved_tensor
from abbe.types import MPP, Bag, Px0

NAME = "tensors"
SUFFIX = ".safetensors"
VERSION = 1
_HEADER = "abbe_bag"  # one key only: safetensors writes several in random order
_NUMBERS = ("patch_size_level0", "stride_level0", "mpp", "level0_width", "level0_height")


def read(path: Path, overrides: Overrides) -> Bag:
    """A file of this layout, its features memory-mapped; or a bare bag from a file of one tensor."""
    if path.suffix.lower() != SUFFIX:
        return assemble(path, saved_tensor(path), None, None, overrides, name="tensor")
    tensors, header = load_safetensors(path)
    if _HEADER not in header and "coords" not in tensors:
        return assemble(path, saved_tensor(path), None, None, overrides, name="tensor")
    if "features" not in tensors:
        raise BagError(f"{path}: no tensor 'features' (found: {', '.join(tensors) or 'nothing'})")
    stated = _stated(path, header)
    coords = coords_array(path, tensors["coords"]) if "coords" in tensors else None
    size = None
    if coords is not None:
        source, missing = "patch_size_level0 in the header", "'coords' without 'patch_size_level0' in the header"
        size = _px0(stated, "patch_size_level0")
        size = resolve_patch_size(path, size, overrides, source=source, missing=missing)
    has_size = "level0_width" in stated and "level0_height" in stated
    return assemble(
        path,
        tensors["features"],
        coords,
        size,
        overrides,
        stride=_px0(stated, "stride_level0"),
        mpp=MPP(stated["mpp"]) if "mpp" in stated else None,
        level0_size=(round(stated["level0_width"]), round(stated["level0_height"])) if has_size else None,
        encoder=stated.get("encoder"),
    )


def peek(path: Path) -> Peek:
    """(N, D, encoder)."""
    n, width = shape_of(path, "features", peek_tensor(path))
    stated = _stated(path, safetensors_header(path)[1]) if path.suffix.lower() == SUFFIX else {}
    return n, width, stated.get("encoder")


def kind(path: Path) -> Kind:
    """The kind as far as the header states it; unknown for a bare tensor."""
    stated = _stated(path, safetensors_header(path)[1]) if path.suffix.lower() == SUFFIX else {}
    own = parse_kind(path, stated.get("kind", {}))
    size, mpp = stated.get("patch_size_level0"), stated.get("mpp")
    return own.filled(Kind(stated.get("encoder"), patch_size_level0=size, level0_mpp=mpp))


def write(path: Path, bag: Bag, made_with: dict[str, Any] | None = None) -> None:
    """Commit any bag, with coordinates or without. Raises BagError if `path` does not end in .safetensors."""
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
        "kind": (made_with or {}).get("kind"),
    }
    stated = {key: value for key, value in stated.items() if value is not None}
    tensors = {"features": bag.features.contiguous()}
    if bag.coords is not None:
        tensors["coords"] = bag.coords.contiguous()
    with commit(path, format="tensors-bag", version=VERSION, made_with=made_with) as temporary:
        save_file(tensors, temporary, {_HEADER: json.dumps({"version": VERSION, "slide_id": bag.slide_id, **stated})})


def _stated(path: Path, header: dict[str, str]) -> dict[str, Any]:
    """The JSON of the header; empty for a file of another layout. Raises BagError for a value of the wrong type."""
    try:
        stated = json.loads(header.get(_HEADER, "{}"))
    except (ValueError, RecursionError) as error:
        raise BagError(f"{path}: {_HEADER!r} in the header is not valid JSON ({error})") from error
    if not isinstance(stated, dict):
        raise BagError(f"{path}: {_HEADER!r} in the header is not a JSON object")
    if not isinstance(stated.get("encoder", ""), str):
        raise BagError(f"{path}: 'encoder' in the header is {stated['encoder']!r}; expected a text")
    return stated | {key: number(path, stated, key) for key in _NUMBERS if key in stated}


def _px0(stated: dict[str, Any], key: str) -> Px0 | None:
    return Px0(stated[key]) if key in stated else None
