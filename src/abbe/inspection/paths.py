"""Choose how to inspect each file or folder.

Label and macro images and slide fields that may identify a patient are never read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from abbe.console import progress
from abbe.errors import AbbeError, InputError
from abbe.inspection import bags, models, slides, tables
from abbe.inspection.finding import Finding, InspectSettings
from abbe.models.hub import WEIGHTS
from abbe.slides.find import SUFFIXES, find_slides
from abbe.store import slidechat
from abbe.store.commit import printable
from abbe.store.detect import SUFFIXES as FEATURES
from abbe.store.detect import ZARR
from abbe.store.walk import files_below
from abbe.train.checkpoint import is_checkpoint

Look = Callable[[Path, InspectSettings], Finding]


def inspect_paths(paths: Sequence[Path], run: InspectSettings) -> list[Finding]:
    """Inspect every path; a folder that is not a single object (model, run, cohort, store) is searched for files.

    Raises InputError if `paths` is empty or a path does not exist.
    """
    if not paths:
        raise InputError("give at least one file or folder")
    for path in paths:
        if not os.path.lexists(path):
            raise InputError(f"{printable(path)}: no such file or folder")
    wanted = [item for path in paths for item in _items(path)]
    findings = []
    with progress("inspecting", len(wanted)) as bar:
        for path, look in wanted:
            try:
                findings.append((look or _look(path))(path, run))
            except (AbbeError, OSError) as error:  # an unreadable file is reported, and the others are still inspected
                findings.append(Finding(printable(path), "unreadable", {}, [printable(str(error))], readable=False))
            bar.advance(bar.task_ids[0])
    return findings


def _items(path: Path) -> list[tuple[Path, Look | None]]:
    """Paths to inspect, each with its inspector (None: decided later by content).

    A folder that is not a single object is replaced by the files below it, with one entry per slide.
    """
    if not path.is_dir():
        return [(path, None)]
    whole = _whole_folder(path)
    if whole is not None:
        return [(path, whole)]
    below = list(files_below(path, is_whole=lambda folder: _whole_folder(folder) is not None))
    items: dict[Path, Look | None] = {}
    if any(file.suffix.lower() in SUFFIXES for file in below):
        for found in find_slides([path]):
            items |= dict.fromkeys(found.files, slides.part)  # only the first file of a slide is inspected
            items[found.path] = slides.not_a_slide(found.problem) if found.problem else slides.whole(found)
    others = 0
    for file in below:
        if file not in items:
            look = _whole_folder(file) if file.is_dir() else None
            if look is None and file.is_file() and file.suffix.lower() not in _READ:
                others += 1
            else:
                items[file] = look
    known = [(file, look) for file, look in sorted(items.items()) if look is not slides.part]
    return [*known, (path, _folder(len(known), others))] if others or not known else known


def _whole_folder(folder: Path) -> Look | None:
    """Inspector for a folder that is a single object, recognised by its files; None for other folders."""
    if folder.suffix.lower() == ZARR:
        return bags.bag
    if (folder / "config.json").is_file() and (folder / WEIGHTS).is_file():
        return models.model
    if is_checkpoint(folder):
        return models.training
    if (folder / "result.json").is_file() and (folder / "predictions.parquet").is_file():
        return models.trained
    if (folder / "cohort.json").is_file():
        return models.cohort
    return None


def _look(path: Path) -> Look:
    """Inspector for a file, chosen by suffix, and by content if a suffix has several meanings."""
    if not path.is_file():
        return slides.not_a_slide("a broken link" if path.is_symlink() else "not a regular file")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return models.tokens if models.is_tokens(path) else bags.bag
    if suffix == ".csv":
        return bags.bag if slidechat.is_slidechat(path) else tables.table
    if suffix in SUFFIXES:
        return slides.whole(find_slides([path])[0])
    return _BY_SUFFIX.get(suffix, _unknown)


def _unknown(path: Path, run: InspectSettings) -> Finding:
    """Try a file with an unknown suffix as a slide. Such files inside a folder are only counted."""
    return slides.slide(path, run)


def _folder(known: int, others: int) -> Look:
    facts = {"inspected": known, "unsupported": others}
    return lambda path, run: Finding(printable(path), "folder", facts)


_BY_SUFFIX: dict[str, Look] = {
    **dict.fromkeys(FEATURES, bags.bag),
    ".json": tables.json_file,
    ".yaml": tables.yaml_file,
    ".yml": tables.yaml_file,
    ".parquet": models.parquet,
}
_READ = {*_BY_SUFFIX, *SUFFIXES}  # suffixes inspected inside a folder; other files are only counted
