"""What a model has learned from: the kind of its features, and hashes of its training and validation slides.

Stored as training.json in the model folder. Evaluation leaves these slides and patients out; condensing a slide encodes
it as the training slides were encoded. Patients are hashed, because their ids may identify them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abbe.errors import BagError, CheckpointError
from abbe.store import commit
from abbe.store.kind import Kind, parse_kind

TRAINING = "training.json"
FORMAT, VERSION = "abbe-training", 1
SEEN = ("train", "val")
"""splits whose slides a model has learned from, or its weights were chosen on"""


@dataclass(frozen=True)
class TrainingRecord:
    """kind: of the features; a key on which training slides differed is unknown.   mixed: whether they differed.

    slides: {hash of a feature file: split}.   patients: {hash of a patient's id: split}.
    """

    kind: Kind = field(default_factory=Kind)
    mixed: bool = False
    slides: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)

    def split_of(self, slide_sha256: str, case_id: str) -> str | None:
        """`train` or `val` if the model has seen the slide or another slide of its patient; None otherwise."""
        return self.slides.get(slide_sha256) or self.patients.get(patient_sha256(case_id))

    def with_earlier(self, other: TrainingRecord | None) -> TrainingRecord:
        """This record and that of the model whose weights training started from."""
        if other is None:
            return self
        slides, patients = {**other.slides, **self.slides}, {**other.patients, **self.patients}
        return TrainingRecord(self.kind, self.mixed or other.mixed, slides, patients)

    def count(self, split: str) -> int:
        """Number of slides of a split."""
        return sum(value == split for value in self.slides.values())


def make_record(kind: Kind, slides: Iterable[tuple[str, str, str]], *, mixed: bool = False) -> TrainingRecord:
    """A record of slides (split, hash of the feature file, case_id); those of other splits than SEEN are not kept."""
    seen = [row for row in slides if row[0] in SEEN]
    return TrainingRecord(
        kind,
        mixed,
        dict(sorted((digest, split) for split, digest, _ in seen)),
        dict(sorted((patient_sha256(case), split) for split, _, case in seen)),
    )


def patient_sha256(case_id: str) -> str:
    """The hash under which a patient is recorded."""
    return hashlib.sha256(f"abbe patient {case_id}".encode()).hexdigest()


def write_record(folder: Path, record: TrainingRecord) -> None:
    """Commit training.json."""
    content = {
        "kind": record.kind.stated(),
        "mixed": record.mixed,
        **{
            name: {split: [digest for digest, own in values.items() if own == split] for split in SEEN}
            for name, values in (("slides", record.slides), ("patients", record.patients))
        },
    }
    commit.write_json(folder / TRAINING, content, format=FORMAT, version=VERSION)


def read_record(folder: Path) -> TrainingRecord | None:
    """The record of a model folder; None if it has none. Raises CheckpointError for one that is altered or invalid."""
    path = folder / TRAINING
    if not path.is_file():
        return None
    if commit.read_sidecar(path) is not None and not commit.is_done(path):
        raise CheckpointError(f"{path}: the file has changed since it was written; copy the model folder again")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return TrainingRecord(
            parse_kind(path, content["kind"]),
            bool(content["mixed"]),
            _by_hash(content["slides"]),
            _by_hash(content["patients"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, BagError) as error:
        raise CheckpointError(
            f"{path}: not a training record of Abbe ({error!r}); copy the model folder again"
        ) from error


def _by_hash(values: dict[str, list[str]]) -> dict[str, str]:
    return {digest: split for split in SEEN for digest in values[split]}
