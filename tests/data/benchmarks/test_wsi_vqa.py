from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from abbe.data.benchmarks.wsi_vqa import closed_unseen, read_wsi_vqa
from abbe.errors import TableError
from abbe.store import commit


def file(tmp_path: Path, records: Any, name: str = "vqa.json") -> Path:
    path = tmp_path / name
    path.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
    return path


def closed(case: str = "c", answer: str = "no", choice: Any = ("yes", "no")) -> dict[str, Any]:
    return {"Id": case, "Question": "q?", "Choice": list(choice), "Answer": answer}


def test_the_public_validation_file(data: Path) -> None:
    path = data / "vqa" / "wsi_vqa" / "WsiVQA_val.json"
    read = read_wsi_vqa(path)
    assert read.line() == f"WSI-VQA: N = 798 about 87 slides, sha256 {commit.file_sha256(path)}"
    described = read.describe()
    assert (described["closed"], described["open"], described["unusable"]) == (421, 377, {})
    assert {letter: round(421 * share) for letter, share in described["always"].items()} == {
        "A": 118,
        "B": 157,
        "C": 95,
        "D": 51,
    }
    first = read.questions[0]
    assert (first.slide, first.answer, first.answer_text) == ("TCGA-A2-A0YC", "B", "right breast cancer")
    assert closed_unseen(read, read).questions == ()


def test_open_closed_and_unusable(tmp_path: Path) -> None:
    records = [
        {"Id": "c1", "Question": "why?", "Answer": " because "},
        closed("c1"),
        closed("c2", "maybe"),
        closed("c3", "x", ("x", "y", "x")),
    ]
    read = read_wsi_vqa(file(tmp_path, records))
    assert [(q.id, q.slide, q.closed, q.answer, q.answer_text) for q in read.questions] == [
        ("0", "c1", False, "because", "because"),
        ("1", "c1", True, "B", "no"),
        ("3", "c3", True, "A", "x"),
    ]
    assert read.unusable == {"2": "case 'c2': Answer 'maybe' is not one of the choices ['yes', 'no']"}
    assert "N = 3 about 2 slides, 1 unusable, sha256" in read.line()
    train = read_wsi_vqa(file(tmp_path, [closed("c3")], "train.json"))
    starred = closed_unseen(read, train)
    assert [q.id for q in starred.questions] == ["1"]
    assert starred.line().startswith("WSI-VQA*: N = 1 about 1 slides")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ("[1,", r"vqa\.json: not valid JSON"),
        ("[" * 100_000, r"vqa\.json: not valid JSON"),
        ({"Id": "c"}, "expected a json list of objects, found a json dict"),
        ([], "found an empty list"),
        ([closed(), 3], "record 1: expected an object with Id, Question, Answer, found 3"),
        ([{"Id": "c", "Question": "q"}], "record 0: Answer is None; expected a non-empty string"),
        (
            [{"Id": "c", "Question": "q", "Answer": "a", "Choices": ["a", "b"]}],
            "unknown key 'Choices'. Did you mean 'Choice'",
        ),
        ([closed(choice=["no"])], "record 0: Choice has 1 options; expected 2 to 4"),
        ([closed(choice=["no", ""])], r"record 0: Choice is \['no', ''\]; expected a list of strings"),
        ([closed(choice=[])], "record 0: Choice has 0 options"),
        (
            '[{"Id": "c", "Id": "d", "Question": "q", "Answer": "a"}]',
            r"key 'Id' is duplicated \(2 times in one object\)",
        ),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, records: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_wsi_vqa(file(tmp_path, records))
