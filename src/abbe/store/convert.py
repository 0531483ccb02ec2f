"""Feature files of any layout to one that Abbe writes, one outcome per file."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abbe.config import to_dict
from abbe.console import progress
from abbe.errors import AbbeError, BagError, InputError, StoreError
from abbe.store import clam, commit, pickles, saved, trident
from abbe.store.bags import layout_of, read_bag, read_kind, suffix_of, write_bag
from abbe.store.commit import printable
from abbe.store.find import FeatureFile, find_features
from abbe.store.outcomes import Outcome, write_outcomes
from abbe.store.parts import MppMissing, Overrides, assemble, resolve_patch_size
from abbe.store.resume import made_before
from abbe.store.settings import ConvertSettings
from abbe.store.walk import files_below
from abbe.types import MPP, Bag, Px0

SlideFacts = tuple[MPP | None, tuple[int, int] | None]
Facts = Callable[[str], tuple[float | None, tuple[int, int] | None]]
"""slide_id -> mpp and level-0 size of its slide, for callers who can read slides"""
_MPP_TOLERANCE = 0.05  # relative: scanners and tools round the mpp


def convert_bags(
    inputs: Sequence[Path], out: str | Path, settings: ConvertSettings | None = None, *, facts: Facts | None = None
) -> list[Outcome]:
    """Convert files and folders of files; outcomes in the order of the inputs, also committed to out/outcomes.csv.

    A file that fails is a row; the run continues. `facts` supplies the mpp and level-0 size that neither the file nor
    the options state. Raises InputError before any work for a path that does not exist.
    """
    settings, out = settings or ConvertSettings(), Path(out)
    found = find_features(inputs, leave_out=out, pickled=pickles.SUFFIXES if settings.trust_pickle else ())
    job = _Job(out, settings, _overrides(settings), facts)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: the folder cannot be created ({error.strerror})") from error
    own = {item.name for item in dataclasses.fields(ConvertSettings)}
    config = {"inputs": [printable(path) for path in inputs], "out": printable(out)}
    config |= {key: value for key, value in to_dict(settings).items() if key in own}
    commit.write_json(out / "config.json", config, format="abbe-config")
    outcomes: list[Outcome] = []
    with progress("converting", len(found)) as bar:
        try:
            for file in found:
                outcomes.append(_one(job, file))
                bar.advance(bar.task_ids[0])
        finally:
            write_outcomes(out / "outcomes.csv", outcomes)
    return outcomes


def _overrides(settings: ConvertSettings) -> Overrides:
    size, mpp, stride = settings.patch_size_level0, settings.override_mpp, settings.stride_level0
    return Overrides(
        None if size is None else Px0(size),
        None if mpp is None else MPP(mpp),
        settings.level0_size,
        settings.encoder,
        None if stride is None else Px0(stride),
    )


@dataclass(frozen=True)
class _Job:
    out: Path
    settings: ConvertSettings
    overrides: Overrides
    facts: Facts | None

    def targets(self, slide_id: str) -> list[Path]:
        """The files written for a slide, the feature file first."""
        folder = self.out / "h5_files" if self.settings.to == clam.NAME else self.out
        target = folder / f"{slide_id}{suffix_of(self.settings.to)}"
        return [target, clam.patches_path(target)] if self.settings.to == clam.NAME else [target]


def _one(job: _Job, file: FeatureFile) -> Outcome:
    started, stage, patches = time.monotonic(), "find", 0
    shown = printable(file.path)
    try:
        if file.skip:
            return Outcome(file.slide_id, shown, "skipped", stage, file.skip)
        stage = "read"
        layout = _layout(job, file.path)
        geometry = _geometry_file(file.path, layout)
        settings = {"to": job.settings.to, "layout": job.settings.layout, **_options(job.overrides)}
        record = {
            "source": printable(file.path.name),
            "source_sha256": source_sha256(file.path),
            "geometry_sha256": None if geometry is None else commit.file_sha256(geometry),
            "settings": settings if job.facts is None else {**settings, "slide": True},
        }
        stage = "resume"
        targets = job.targets(file.slide_id)
        for target, read in itertools.product(targets, (file.path, geometry)):
            if read is not None and target.exists() and target.samefile(read):
                raise StoreError(f"{target} is read for this conversion and would be overwritten; use another --out")
        done = _finished(job, file, record, targets)
        if done is None:
            stage = "read"
            bag, facts = _read(job, file, layout)
            patches, stage = len(bag), "write"
            made_with = {**record, "slide": facts, "read_as": layout, "patches": patches}
            made_with["kind"] = (
                {} if layout == "pickle" else read_kind(file.path, layout, encoder=job.settings.encoder).own()
            )
            write_bag(targets[0], bag, job.settings.to, made_with=made_with)
        else:
            patches = done
    except (AbbeError, OSError, UnicodeError) as error:
        seconds = time.monotonic() - started
        return Outcome(file.slide_id, shown, "failed", stage, printable(str(error)), seconds=seconds)
    return Outcome(
        file.slide_id,
        shown,
        "done" if patches else "empty",
        "" if patches else "read",
        "" if patches else "no patches",
        patches,
        time.monotonic() - started,
    )


def _layout(job: _Job, path: Path) -> str:
    if job.settings.trust_pickle and saved.is_pickle(path):
        return "pickle"
    return layout_of(path) if job.settings.layout == "auto" else job.settings.layout


def _geometry_file(path: Path, layout: str) -> Path | None:
    """The patches file that a feature file's layout may have."""
    finders = {clam.NAME: clam.find_patches, trident.NAME: trident.find_patches}
    return finders[layout](path) if layout in finders else None


def _read(job: _Job, file: FeatureFile, layout: str) -> tuple[Bag, SlideFacts | None]:
    """The bag, and the facts of its slide if they were needed."""
    overrides, facts = job.overrides, None
    try:
        bag = _read_as(file.path, layout, overrides)
    except MppMissing:
        if job.facts is None:
            raise
        facts = _slide_facts(job.facts, file)
        bag = _read_as(file.path, layout, dataclasses.replace(overrides, mpp=facts[0]))
    bag = dataclasses.replace(bag, slide_id=file.slide_id, encoder=bag.encoder or overrides.encoder)
    incomplete = bag.coords is not None and (bag.mpp is None or bag.level0_size is None)
    if job.facts is None or not (facts or incomplete):
        return bag, facts
    facts = facts or _slide_facts(job.facts, file)
    mpp, size = facts
    if overrides.mpp is None and mpp is not None and bag.mpp is not None and abs(bag.mpp - mpp) > _MPP_TOLERANCE * mpp:
        raise BagError(
            f"{file.path}: states {bag.mpp:g} microns per pixel at level 0, but its slide (--slide) states {mpp:g}; "
            "give the right one with --override-mpp"
        )
    if overrides.level0_size is None and size is not None and bag.level0_size not in (None, size):
        raise BagError(
            f"{file.path}: states a slide of {bag.level0_size} level-0 pixels, but its slide (--slide) has {size}; the "
            "features are of another slide; give that one, or omit --slide"
        )
    return dataclasses.replace(bag, mpp=bag.mpp or mpp, level0_size=bag.level0_size or size), facts


def _slide_facts(facts: Facts, file: FeatureFile) -> SlideFacts:
    mpp, size = facts(printable(file.path.stem))
    return None if mpp is None else MPP(mpp), size


def _read_as(path: Path, layout: str, overrides: Overrides) -> Bag:
    if layout == "pickle":
        features, coords = pickles.read_pickled(path)
        missing = "a pickled array has no patch size"
        size = None if coords is None else resolve_patch_size(path, None, overrides, missing=missing)
        return assemble(path, features, coords, size, overrides, name="feature", encoder=overrides.encoder)
    options: dict[str, Any] = {item.name: getattr(overrides, item.name) for item in dataclasses.fields(overrides)}
    return read_bag(path, layout, **options)


def _options(overrides: Overrides) -> dict[str, Any]:
    """The overrides under the names of the command line's options."""
    values = dataclasses.asdict(overrides)
    return {"override_mpp": values.pop("mpp"), **values}


def source_sha256(path: Path) -> str:
    """SHA-256 of a file; for a .zarr store, of the names and hashes of all files in it."""
    if path.is_file():
        return commit.file_sha256(path)
    digest = hashlib.sha256()
    for item in sorted(item for item in files_below(path, hidden=True) if item.is_file()):
        digest.update(f"{item.relative_to(path)}\0{commit.file_sha256(item)}\n".encode())
    return digest.hexdigest()


def _finished(job: _Job, file: FeatureFile, record: dict[str, Any], targets: Sequence[Path]) -> int | None:
    """Number of patches if an earlier run with the same options converted the same file; None if it must be converted.

    Raises StoreError instead of overwriting a file made with other settings.
    """
    words = {
        "source": f"another version of {record['source']}",
        "source_sha256": f"another version of {record['source']}",
        "settings": "other options",
        "geometry_sha256": f"another version of the patches file beside {record['source']}",
        "slide": "another slide",
    }
    found = []
    for target in targets:
        # If the earlier run did not read the slide, do not read it now.
        sidecar = commit.read_sidecar(target) if job.facts is not None else None
        needed = sidecar is not None and sidecar["made_with"].get("slide")
        facts = _slide_facts(job.facts, file) if job.facts is not None and needed else None
        found.append(made_before(target, {**record, "slide": facts}, overwrite=job.settings.overwrite, words=words))
    return None if any(old is None for old in found) else int(found[0]["patches"])  # type: ignore[index]
