"""`abbe convert`: feature files of any layout to one of those Abbe writes, one outcome a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from abbe.console import progress, result
from abbe.errors import AbbeError, ConfigError, InputError, StoreError
from abbe.store import clam, commit, pickles, saved
from abbe.store.bags import LAYOUTS, WRITTEN, layout_of, read_bag, suffix_of, write_bag
from abbe.store.inputs import FeatureFile, find_features
from abbe.store.outcomes import Outcome, exit_code, write_outcomes
from abbe.store.parts import Given, assemble, one_size
from abbe.types import Bag

Layout = Literal["auto", "clam", "gigapath", "histgen", "slidechat", "stamp", "tensors", "trident", "wsidata"]
Written = Literal["clam", "stamp", "tensors", "trident"]
Facts = Callable[[str], tuple[float | None, tuple[int, int] | None]]
"""slide_id -> (mpp, level-0 size) of its slide: how a caller who can read slides supplies them"""
_SHOWN_FAILURES = 20


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
    """patch encoder the features must be of; says which where a file holds several"""
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
        unmade = [outcome for outcome in outcomes if outcome.outcome in ("failed", "skipped")]
        lines = [f"{o.path}: {o.outcome} at {o.stage}: {o.reason}" for o in unmade]
        if len(lines) > _SHOWN_FAILURES:
            lines = [*lines[:_SHOWN_FAILURES], f"and {len(lines) - _SHOWN_FAILURES} more"]
        counted = Counter(outcome.outcome for outcome in outcomes)
        summary = ", ".join(f"{number} {name}" for name, number in sorted(counted.items()))
        text = "\n".join([*lines, f"{summary}; see {self.out / 'outcomes.csv'}"])
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

    One file's failure is a row, never the end of the run. `facts` supplies mpp and level-0 size of each slide where the
    options do not; `added` are further settings for out/config.json. Raises InputError before any work for a path that
    does not exist, or an option that cannot be.
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
    config = {"inputs": [str(path) for path in inputs], "out": str(out), **settings, **_options(given)}
    config |= json.loads(json.dumps(added or {}, default=str))
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

    def target(self, slide_id: str) -> Path:
        folder = self.out / "h5_files" if self.to == clam.NAME else self.out
        return folder / f"{slide_id}{suffix_of(self.to)}"


def _one(job: _Job, file: FeatureFile) -> Outcome:
    started, stage, patches = time.monotonic(), "find", 0
    try:
        if file.odd:
            return Outcome(file.slide_id, str(file.path), "skipped", stage, file.odd)
        stage = "read"
        given = _given(job, file)
        record = {
            "source": file.path.name,
            "source_sha256": source_sha256(file.path),
            "settings": {"to": job.to, "layout": job.layout, **_options(given)},
        }
        stage = "resume"
        target = job.target(file.slide_id)
        done = _finished(target, record, clam_too=job.to == clam.NAME, overwrite=job.overwrite)
        if done is None:
            stage = "read"
            bag, read_as = _read(job, file.path, given)
            patches, stage = len(bag), "write"
            bag = dataclasses.replace(bag, slide_id=file.slide_id)
            write_bag(target, bag, job.to, made_with={**record, "read_as": read_as, "patches": patches})
        else:
            patches = done
    except (AbbeError, OSError) as error:
        seconds = time.monotonic() - started
        return Outcome(file.slide_id, str(file.path), "failed", stage, str(error), seconds=seconds)
    return Outcome(
        file.slide_id,
        str(file.path),
        "done" if patches else "empty",
        "" if patches else "read",
        "" if patches else "no patches in it",
        patches,
        time.monotonic() - started,
    )


def _given(job: _Job, file: FeatureFile) -> Given:
    if job.facts is None:
        return job.given
    mpp, size = job.facts(file.path.stem)
    return dataclasses.replace(
        job.given,
        mpp=mpp if job.given.mpp is None else job.given.mpp,
        level0_size=size if job.given.level0_size is None else job.given.level0_size,
    )


def _read(job: _Job, path: Path, given: Given) -> tuple[Bag, str]:
    """The bag, and the layout it was read as."""
    if job.trust_pickle and saved.is_pickle(path):
        features, coords = pickles.read_pickled(path)
        why = "a pickled array keeps no patch size"
        size = None if coords is None else one_size(path, None, given, said_by="", why_none=why)
        return assemble(path, features, coords, size, given, name="feature", encoder=given.encoder), "pickle"
    options: dict[str, Any] = {item.name: getattr(given, item.name) for item in dataclasses.fields(given)}
    layout = layout_of(path) if job.layout == "auto" else job.layout
    return read_bag(path, layout, **options), layout


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


def _finished(target: Path, record: dict[str, Any], *, clam_too: bool, overwrite: bool) -> int | None:
    """Patches of what an earlier run of the same options made of the same file; None where there is work to do.

    Raises StoreError rather than replace what was made otherwise.
    """
    state, sidecar = commit.state(target), commit.read_sidecar(target)
    if state == "unsigned" and not overwrite:
        raise StoreError(
            f"{target} stands there without a sidecar, and would be replaced; --overwrite, or another --out"
        )
    if state != "done" or sidecar is None:
        return None
    old = sidecar["made_with"]
    plain = json.loads(json.dumps(record))
    differs = [key for key in plain if old.get(key) != plain[key]]
    if differs and not overwrite:
        what = "other options" if differs == ["settings"] else f"another version of {record['source']}"
        raise StoreError(f"{target} was made from {what}; --overwrite makes it again, or use another --out")
    if differs or (clam_too and not commit.is_done(clam.patches_path(target))):
        return None
    return int(old["patches"])
