"""What an earlier run left of a slide: is it complete, and made from the same slide with the same settings?"""

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
_END_BYTES = 1 << 20
_ENCODER_KEYS = ("encoder_version", "precision")  # coordinates do not depend on the encoder


def fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """Size and SHA-256 of the first and last MiB of a slide's first file; one hash over the same of all other files.

    Whole slides are too large to hash. Raises SlideError (stage open) for a file that cannot be read.
    """
    first, *others = files
    ends = _ends(first)
    if not others:
        return ends
    digest = hashlib.sha256()
    for file in others:
        digest.update(json.dumps([os.path.relpath(file, first.parent), _ends(file)]).encode())
    return {**ends, "files": len(files), "sha256_files": digest.hexdigest()}


def _ends(path: Path) -> dict[str, Any]:
    try:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(file.read(_END_BYTES))
            file.seek(max(0, size - _END_BYTES))
            digest.update(file.read(_END_BYTES))
    except OSError as error:
        raise SlideError("open", f"{path.name}: {type(error).__name__}: {error.strerror}") from error
    return {"size": size, "sha256_ends": digest.hexdigest()}


def finished(features: Path, patches: Path, record: dict[str, Any], *, overwrite: bool) -> Ending | None:
    """How an earlier run with the same settings on the same slide ended; None if the slide must be encoded.

    record: of this run, as stored in the sidecars (settings, slide, encoder_version, precision). Raises SlideError
    (stage resume) for files made with other settings, from another slide or by another program.
    """
    patches_record = {key: value for key, value in record.items() if key not in _ENCODER_KEYS}
    try:
        if old := made_before(features, record, overwrite=overwrite, **_OPTIONS):
            return "done", "", old["reason"], old["patches"]
        old = made_before(patches, patches_record, overwrite=overwrite, **_OPTIONS)
    except StoreError as error:
        raise SlideError("resume", str(error)) from error
    # A slide with tissue is not finished without its features.
    return ("empty", "tissue", old["reason"], 0) if old and old["empty"] else None


def _is_ours(path: Path) -> bool:
    """Whether abbe wrote a file without a sidecar, in a run that was killed before it wrote the sidecar."""
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
