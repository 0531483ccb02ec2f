"""What a file or folder is, its geometry, its hash, and every problem found, each with the remedy.

Label and macro images are never read, nor any field of a slide that may name a patient.
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
    """A finding for every path, and for every file of a folder that is nothing by itself.

    Raises InputError for a path that does not exist, or none at all.
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
            except (AbbeError, OSError) as error:  # what cannot be read is a finding, not the end
                findings.append(Finding(printable(path), "unreadable", {}, [printable(str(error))], readable=False))
            bar.advance(bar.task_ids[0])
    return findings


def _items(path: Path) -> list[tuple[Path, Look | None]]:
    """The path with the way to look at it, None where its content decides; of a folder that is nothing by itself,
    everything in it, once."""
    if not path.is_dir():
        return [(path, None)]
    whole = _whole_folder(path)
    if whole is not None:
        return [(path, whole)]
    below = list(files_below(path, is_whole=lambda folder: _whole_folder(folder) is not None))
    items: dict[Path, Look | None] = {}
    if any(file.suffix.lower() in SUFFIXES for file in below):
        for found in find_slides([path]):
            items |= dict.fromkeys(found.files, slides.part)  # the files of one slide are looked at once, as the first
            items[found.path] = slides.odd(found.problem) if found.problem else slides.whole(found)
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
    """How to look at a folder that is one thing, by the files that make it one."""
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
    """How to look at a file: by its suffix, and by its content where one suffix is used for several things."""
    if not path.is_file():
        return slides.odd("a link to what is not there" if path.is_symlink() else "no regular file")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return models.tokens if models.is_tokens(path) else bags.bag
    if suffix == ".csv":
        return bags.bag if slidechat.is_slidechat(path) else tables.table
    if suffix in SUFFIXES:
        return slides.whole(find_slides([path])[0])
    return _BY_SUFFIX.get(suffix, _unknown)


def _unknown(path: Path, run: InspectSettings) -> Finding:
    """A file that no reader is for. Named by hand it may still be a slide; in a folder it is only counted."""
    return slides.slide(path, run)


def _folder(known: int, others: int) -> Look:
    facts = {"shown one by one": known, "of no kind Abbe reads": others}
    return lambda path, run: Finding(printable(path), "folder", facts)


_BY_SUFFIX: dict[str, Look] = {
    **dict.fromkeys(FEATURES, bags.bag),
    ".json": tables.json_file,
    ".yaml": tables.yaml_file,
    ".yml": tables.yaml_file,
    ".parquet": models.parquet,
}
_READ = {*_BY_SUFFIX, *SUFFIXES}  # suffixes of files that are looked at in a folder; the others are counted
