from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from abbe.data.benchmarks.slideinstruct import read_slideinstruct
from abbe.errors import TableError
from abbe.store import commit


def file(tmp_path: Path, records: Any) -> Path:
    path = tmp_path / "instruct.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def record(*said: str, image: Any = ("BRCA/TCGA-1.A-DX1.csv",)) -> dict[str, Any]:
    speakers = ("human", "gpt") * len(said)
    talk = [{"from": speaker, "value": value} for speaker, value in zip(speakers, said, strict=False)]
    return {"id": "one", "image": list(image), "conversations": talk}


def test_turns_and_slide(tmp_path: Path) -> None:
    path = file(tmp_path, [record("<image>\nwhat?", "this", "and?", "that"), record("why?\n<image>", "so")])
    read = read_slideinstruct(path)
    first, second = read.dialogues
    assert first.turns == (("what?", "this"), ("and?", "that"))
    assert second.turns == (("why?", "so"),)
    assert first.slide == "TCGA-1.A-DX1"
    assert read.line() == f"SlideInstruct: N = 2 about 1 slides, sha256 {commit.file_sha256(path)}"
    assert read.describe()["turns"] == 3


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (record("what?", "this"), r"record 1 \('one'\): conversations\[0\] contains <image> 0 times"),
        (record("<image><image>what?", "this"), r"conversations\[0\] contains <image> 2 times"),
        (record("<image>what?", "<image>"), r"conversations\[1\] contains <image> 1 times"),
        (record("<image>what?"), "conversations must alternate between human and gpt"),
        (record("<image>what?", " "), r"conversations\[1\] is .*expected a message from 'gpt' with a value"),
        (record("<image>what?", "this", image=()), r"image is \[\]; expected a list of file names"),
        (record("<image>what?", "this") | {"image": "a.csv"}, "image is 'a.csv'; expected a list"),
        (record("<image>what?", "this") | {"id": 3}, "record 1: id is 3; expected a non-empty string"),
        ({"id": "one", "image": ["a.csv"]}, "found None"),
    ],
)
def test_a_broken_record_is_refused_by_place(tmp_path: Path, broken: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_slideinstruct(file(tmp_path, [record("<image>what?", "this"), broken]))


def test_speakers_take_turns(tmp_path: Path) -> None:
    wrong = record("<image>what?", "this")
    wrong["conversations"][1]["from"] = "human"
    with pytest.raises(TableError, match=r"conversations\[1\] is .*expected a message from 'gpt'"):
        read_slideinstruct(file(tmp_path, [wrong]))
