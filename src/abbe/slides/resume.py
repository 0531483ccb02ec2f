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
from abbe.store import commit
from abbe.store.outcomes import Result

Ending = tuple[Result, str, str, int]
"""outcome, stage, reason, patches"""
_ENDS = 1 << 20  # bytes


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
    for path in (features, patches):
        try:
            state = commit.state(path)
            sidecar = commit.read_sidecar(path)
        except StoreError as error:
            raise SlideError("resume", str(error)) from error
        if state == "unsigned" and not overwrite and not _ours(path):
            raise SlideError("resume", f"{path} was not written by abbe and would be replaced; use another --out")
        if state != "done" or sidecar is None:
            continue
        old = sidecar["made_with"]
        differs = _difference(old, record, of_features=path == features)
        if differs and not overwrite:
            raise SlideError("resume", f"{path} was made with {differs}; use --overwrite, or another --out")
        # A patches file with patches is no end: features are what is asked for.
        if not differs and (old["empty"] or path == features):
            return "empty" if old["empty"] else "done", "tissue" if old["empty"] else "", old["reason"], old["patches"]
    return None


def _ours(path: Path) -> bool:
    """Whether a file without a sidecar is one of ours whose run was killed just before the sidecar was written."""
    try:
        with h5py.File(path, "r") as file:
            return "coords" in file and "level0_mpp" in file["coords"].attrs
    except OSError:
        return False


def _difference(old: dict[str, Any], new: dict[str, Any], *, of_features: bool) -> str:
    """What differs between two records, in words; "" where nothing does. Coordinates do not depend on the encoder."""
    new = json.loads(json.dumps(new))
    if "slide" not in old:
        return "something other than `abbe encode`"
    if old["slide"] != new["slide"]:
        return "another version of the slide (its size or bytes have changed, or its files)"
    before, now = old.get("settings", {}), new["settings"]
    changed = [f"{key}={before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
    if of_features:
        if old.get("encoder_version") != new["encoder_version"]:
            changed.append(f"version {old.get('encoder_version')} of the encoder, now {new['encoder_version']}")
        if old.get("precision", "float32") != new["precision"]:  # before it was recorded there was no other
            changed.append(f"--precision {old.get('precision', 'float32')}, now {new['precision']}")
    return "; ".join(changed)
