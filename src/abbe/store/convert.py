"""`abbe convert`: feature files of any layout to one of those Abbe writes, one outcome a file."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from abbe.console import progress, result
from abbe.errors import AbbeError, BagError, ConfigError, InputError, StoreError
from abbe.store import clam, commit, pickles, saved, trident
from abbe.store.bags import LAYOUTS, WRITTEN, layout_of, read_bag, suffix_of, write_bag
from abbe.store.commit import printable
from abbe.store.inputs import FeatureFile, find_features
from abbe.store.outcomes import Outcome, exit_code, summary, write_outcomes
from abbe.store.parts import Given, MppMissing, assemble, one_kind_of_error, one_size
from abbe.types import Bag

Layout = Literal["auto", "clam", "gigapath", "histgen", "slidechat", "stamp", "tensors", "trident", "wsidata"]
Written = Literal["clam", "stamp", "tensors", "trident"]
Said = tuple[float | None, tuple[int, int] | None]
Facts = Callable[[str], Said]
"""slide_id -> (mpp, level-0 size) of its slide: how a caller who can read slides supplies them"""
_MPP_MAY_DIFFER = 0.05  # part of the mpp: scanners and tools round it


@dataclass(frozen=True)
class Convert:
    """Convert feature files: any layout in, one of Abbe's out, with every cross-check in between.

    Example:
      abbe convert features/ --out converted --to tensors
      abbe convert slide.h5 --out converted --to trident --override-mpp 0.25

    OUT/<slide>.h5 (or .safetensors; for clam OUT/h5_files and OUT/patches), and OUT/outcomes.csv with a row a file. The
    same command again does only what is missing.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """feature files, and folders that are searched for them"""
    out: Path
    """folder for the converted files and outcomes.csv"""
    to: Written = "trident"
    """layout to write"""
    layout: Layout = "auto"
    """layout to read; auto tells it from each file"""
    patch_size_level0: float | None = None
    """side of a patch in level-0 pixels, for files that do not say it"""
    override_mpp: float | None = None
    """microns a pixel at level 0, for files that do not say it or say it wrongly"""
    level0_size: tuple[int, int] | None = None
    """width and height of the slide in level-0 pixels, for files that do not say them"""
    stride_level0: float | None = None
    """step between patches in level-0 pixels, for files of overlapping patches that do not say it"""
    encoder: str | None = None
    """patch encoder the features must be of; says which where a file holds several, is recorded where it names none"""
    trust_pickle: bool = False
    """unpickle files that are pickles inside, in a child process: this RUNS CODE that is in the file"""
    overwrite: bool = False
    """convert again what was made from another version of a file, or with other options"""
    json: bool = False
    """print the outcomes as JSON"""

    def run(self) -> int:
        settings = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        ours = {item.name for item in dataclasses.fields(Convert)} - {"inputs", "out", "json"}
        options = {key: value for key, value in settings.items() if key in ours}
        # What a verb built on this one adds is not for convert_bags, but --config must find it again.
        added = {key: value for key, value in settings.items() if key not in {*ours, "inputs", "out", "json"}}
        outcomes = convert_bags(self.inputs, self.out, facts=self.facts(), added=added, **options)
        text = summary(outcomes, self.out / "outcomes.csv")
        result(text, [dataclasses.asdict(outcome) for outcome in outcomes], json_output=self.json)
        return exit_code(outcomes)

    def facts(self) -> Facts | None:
        """What slides at hand say of themselves; none are at hand here."""
        return None


def convert_bags(
    inputs: Sequence[Path],
    out: str | Path,
    *,
    to: str = "trident",
    layout: str = "auto",
    patch_size_level0: float | None = None,
    override_mpp: float | None = None,
    level0_size: tuple[int, int] | None = None,
    stride_level0: float | None = None,
    encoder: str | None = None,
    trust_pickle: bool = False,
    overwrite: bool = False,
    facts: Facts | None = None,
    added: dict[str, Any] | None = None,
) -> list[Outcome]:
    """Convert files and folders of files; outcomes in the order of the inputs, also committed to out/outcomes.csv.

    One file's failure is a row, never the end of the run. `facts` is asked for mpp and level-0 size of a slide where
    neither its file nor the options say them; `added` are further settings for out/config.json. Raises InputError
    before any work for a path that does not exist, or an option that cannot be.
    """
    for name, value, known in (("--to", to, WRITTEN), ("--layout", layout, ("auto", *LAYOUTS))):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; known: {', '.join(known)}")
    numbers = {"patch-size-level0": patch_size_level0, "override-mpp": override_mpp, "stride-level0": stride_level0}
    for name, number in numbers.items():
        if number is not None and not 0 < number < float("inf"):
            raise ConfigError(f"--{name} is {number:g}; expected a positive number")
    out = Path(out)
    found = find_features(inputs, leave_out=out, pickled=pickles.SUFFIXES if trust_pickle else ())
    given = Given(patch_size_level0, override_mpp, level0_size, encoder, stride_level0)
    job = _Job(out, to, layout, given, trust_pickle, overwrite, facts)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: no folder can be made there ({error.strerror})") from error
    settings = {"to": to, "layout": layout, "trust_pickle": trust_pickle, "overwrite": overwrite}
    config = {"inputs": [printable(path) for path in inputs], "out": printable(out), **settings, **_options(given)}
    config |= json.loads(json.dumps(added or {}, default=lambda value: printable(str(value))))
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


@dataclass(frozen=True)
class _Job:
    out: Path
    to: str
    layout: str
    given: Given
    trust_pickle: bool
    overwrite: bool
    facts: Facts | None

    def targets(self, slide_id: str) -> list[Path]:
        """The feature file that is written, then what is written with it."""
        folder = self.out / "h5_files" if self.to == clam.NAME else self.out
        target = folder / f"{slide_id}{suffix_of(self.to)}"
        return [target, clam.patches_path(target)] if self.to == clam.NAME else [target]


def _one(job: _Job, file: FeatureFile) -> Outcome:
    started, stage, patches = time.monotonic(), "find", 0
    shown = printable(file.path)
    try:
        if file.odd:
            return Outcome(file.slide_id, shown, "skipped", stage, file.odd)
        stage = "read"
        layout = _layout(job, file.path)
        geometry = _geometry_file(file.path, layout)
        settings = {"to": job.to, "layout": job.layout, **_options(job.given)}
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
                raise StoreError(f"{target} is read for this conversion and would be replaced; use another --out")
        done = _finished(job, file, record, targets)
        if done is None:
            stage = "read"
            bag, said = _read(job, file, layout)
            patches, stage = len(bag), "write"
            made_with = {**record, "slide": said, "read_as": layout, "patches": patches}
            write_bag(targets[0], bag, job.to, made_with=made_with)
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
        "" if patches else "no patches in it",
        patches,
        time.monotonic() - started,
    )


def _layout(job: _Job, path: Path) -> str:
    if job.trust_pickle and saved.is_pickle(path):
        return "pickle"
    return layout_of(path) if job.layout == "auto" else job.layout


def _geometry_file(path: Path, layout: str) -> Path | None:
    """The second file that reading a feature file may consult."""
    finders = {clam.NAME: clam.find_patches, trident.NAME: trident.find_patches}
    return finders[layout](path) if layout in finders else None


def _read(job: _Job, file: FeatureFile, layout: str) -> tuple[Bag, Said | None]:
    """The bag, and what its slide said where it was asked."""
    given, said = job.given, None
    try:
        bag = _read_as(file.path, layout, given)
    except MppMissing:
        if job.facts is None:
            raise
        said = job.facts(printable(file.path.stem))
        bag = _read_as(file.path, layout, dataclasses.replace(given, mpp=said[0]))
    bag = dataclasses.replace(bag, slide_id=file.slide_id, encoder=bag.encoder or given.encoder)
    lacks = bag.coords is not None and (bag.mpp is None or bag.level0_size is None)
    if job.facts is None or not (said or lacks):
        return bag, said
    said = said or job.facts(printable(file.path.stem))
    mpp, size = said
    if given.mpp is None and mpp is not None and bag.mpp is not None and abs(bag.mpp - mpp) > _MPP_MAY_DIFFER * mpp:
        raise BagError(
            f"{file.path}: says {bag.mpp:g} microns a pixel at level 0, its slide (--slide) says {mpp:g}; "
            "--override-mpp says which is right"
        )
    if given.level0_size is None and size is not None and bag.level0_size not in (None, size):
        raise BagError(
            f"{file.path}: says the slide has {bag.level0_size} level-0 pixels, its slide (--slide) says {size}; these "
            "features are of another slide; name theirs, or leave --slide out"
        )
    return dataclasses.replace(bag, mpp=bag.mpp or mpp, level0_size=bag.level0_size or size), said


def _read_as(path: Path, layout: str, given: Given) -> Bag:
    if layout == "pickle":
        with one_kind_of_error(path):
            features, coords = pickles.read_pickled(path)
            why = "a pickled array keeps no patch size"
            size = None if coords is None else one_size(path, None, given, said_by="", why_none=why)
            return assemble(path, features, coords, size, given, name="feature", encoder=given.encoder)
    options: dict[str, Any] = {item.name: getattr(given, item.name) for item in dataclasses.fields(given)}
    return read_bag(path, layout, **options)


def _options(given: Given) -> dict[str, Any]:
    """What was supplied, under the names of the options."""
    values = dataclasses.asdict(given)
    return {"override_mpp": values.pop("mpp"), **values}


def source_sha256(path: Path) -> str:
    """SHA-256 of a file, or of a .zarr store: of the names and hashes of all files in it."""
    if path.is_file():
        return commit.file_sha256(path)
    digest = hashlib.sha256()
    for item in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{item.relative_to(path)}\0{commit.file_sha256(item)}\n".encode())
    return digest.hexdigest()


def _finished(job: _Job, file: FeatureFile, record: dict[str, Any], targets: Sequence[Path]) -> int | None:
    """Patches of what an earlier run of the same options made of the same file; None where there is work to do.

    Raises StoreError rather than replace what was made otherwise.
    """
    patches: list[int] = []
    for target in targets:
        state, sidecar = commit.state(target), commit.read_sidecar(target)
        if state == "unsigned" and not job.overwrite:
            raise StoreError(
                f"{target} stands there without a sidecar, and would be replaced; --overwrite, or another --out"
            )
        if state != "done" or sidecar is None:
            continue
        old = sidecar["made_with"]
        # A slide that was not asked then is not asked now.
        said = job.facts(printable(file.path.stem)) if job.facts is not None and old.get("slide") else None
        now = json.loads(json.dumps({**record, "slide": said}))
        differs = [key for key in now if old.get(key) != now[key]]
        if not differs:
            patches.append(int(old["patches"]))
        elif not job.overwrite:
            what = _what_differs(differs, record["source"])
            raise StoreError(f"{target} was made from {what}; --overwrite makes it again, or use another --out")
    return patches[0] if len(patches) == len(targets) else None


def _what_differs(keys: list[str], source: str) -> str:
    if "source_sha256" in keys or "source" in keys:
        return f"another version of {source}"
    if "settings" in keys:
        return "other options"
    return f"another version of the patches file beside {source}" if "geometry_sha256" in keys else "another slide"
