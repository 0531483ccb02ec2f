"""What an earlier run left of a slide: whether it is whole, and made from the same slide with the same settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py

from abbe.errors import SlideError, StoreError
from abbe.store.outcomes import Result
from abbe.store.resume import made_before

Ending = tuple[Result, str, str, int]
"""outcome, stage, reason, patches"""
_ENDS = 1 << 20  # bytes
_OF_FEATURES = ("encoder_version", "precision")  # coordinates do not depend on the encoder


def fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """Size, and SHA-256 of the first and last MiB, of a slide's first file; of more files, one hash over the same.

    Gigabytes are not read to see that a slide is the same. Raises SlideError (stage open) for a file that cannot be
    read.
    """
    first, *others = files
    seen = _ends(first)
    if not others:
        return seen
    digest = hashlib.sha256()
    for file in others:
        digest.update(json.dumps([os.path.relpath(file, first.parent), _ends(file)]).encode())
    return {**seen, "files": len(files), "sha256_files": digest.hexdigest()}


def _ends(path: Path) -> dict[str, Any]:
    try:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    except OSError as error:
        raise SlideError("open", f"{path.name}: {type(error).__name__}: {error.strerror}") from error
    return {"size": size, "sha256_ends": digest.hexdigest()}


def finished(features: Path, patches: Path, record: dict[str, Any], *, overwrite: bool) -> Ending | None:
    """How an earlier run of the same settings on the same slide ended, or None where there is work to do.

    record: of this run, as it goes into the sidecars (settings, slide, encoder_version, precision). Raises SlideError
    (stage resume) rather than replace what was made otherwise, or by another program.
    """
    of_patches = {key: value for key, value in record.items() if key not in _OF_FEATURES}
    try:
        old = made_before(features, record, overwrite=overwrite, **_OPTIONS)
        if old is None:
            old = made_before(patches, of_patches, overwrite=overwrite, **_OPTIONS)
            if old is not None and not old["empty"]:
                return None  # patches alone are not the end: features are what is asked for
    except StoreError as error:
        raise SlideError("resume", str(error)) from error
    if old is None:
        return None
    return "empty" if old["empty"] else "done", "tissue" if old["empty"] else "", old["reason"], old["patches"]


def _is_ours(path: Path) -> bool:
    """Whether a file without a sidecar is one of ours whose run was killed just before the sidecar was written."""
    try:
        with h5py.File(path, "r") as file:
            return "coords" in file and "level0_mpp" in file["coords"].attrs
    except OSError:
        return False


_OPTIONS: dict[str, Any] = {
    "words": {"slide": "another version of the slide (its size, its bytes or its files have changed)"},
    "defaults": {"precision": "float32"},
    "ours": _is_ours,
}
