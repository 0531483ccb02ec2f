from __future__ import annotations

from pathlib import Path

import pytest

from abbe.data.benchmarks.slidebench import read_bcnb, read_slidebench
from abbe.errors import TableError
from abbe.store import commit

HEAD = "ID,Slide,Tumor,Broad Category,Narrow Category,Question,A,B,C,D,Answer\n"
BCNB = "ID,Slide,Task,Question,A,B,C,D,Answer\n"


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "questions.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_public_sample(data: Path) -> None:
    path = data / "vqa" / "slidebench" / "SlideBench-VQA-TCGA_sample.csv"
    read = read_slidebench(path)
    assert read.sha256 == commit.file_sha256(path)
    assert (
        read.line()
        == f"SlideBench-VQA: N = 200 (not the size of a known release) about 92 slides, sha256 {read.sha256}"
    )
    first = read.questions[0]
    assert (first.id, first.slide) == ("0", "TCGA-05-4244-01Z-00-DX1")
    assert (first.broad, first.narrow) == ("Diagnosis", "Disease Classification")
    assert (first.answer, first.answer_text, first.extra) == ("C", "Papillary adenocarcinoma", {"Tumor": ""})
    described = read.describe()
    assert described["broad"] == {"Diagnosis": 134, "Microscopy": 53, "Clinical": 13}
    assert len(described["narrow"]) == 12
    assert described["always"] == {"A": 0.14, "B": 0.365, "C": 0.4, "D": 0.095}
    assert (described["closed"], described["open"], described["options"]) == (200, 0, {"4": 200})


@pytest.mark.parametrize(
    ("n", "release"), [(1494, "first public"), (3176, "second public"), (7827, "paper"), (2, "not the")]
)
def test_known_sizes_are_named(tmp_path: Path, n: int, release: str) -> None:
    rows = "".join(f"{i},s,,Clinical,Grading,q?,yes,no,,,B\n" for i in range(n))
    read = read_slidebench(file(tmp_path, HEAD + rows))
    assert len(read.questions) == n
    assert release in read.release


def test_empty_options_are_no_options(tmp_path: Path) -> None:
    text = HEAD + '0,001,,M,N,"a, b?",yes,no,,,B\n1,001,,M,N,"two\nlines?",x,,z,,C\n'
    two, three = read_slidebench(file(tmp_path, text)).questions
    assert (two.slide, two.question, two.options, two.answer_text) == ("001", "a, b?", ("yes", "no"), "no")
    assert (three.options, three.answer_text) == (("x", "", "z"), "z")


def test_further_columns_are_kept_and_repeated_options_counted(tmp_path: Path) -> None:
    text = HEAD.replace("Answer", "Answer,split") + "0,s,,M,N,q,same,same,x,,C,test\n"
    read = read_slidebench(file(tmp_path, text))
    assert read.questions[0].extra == {"Tumor": "", "split": "test"}
    assert read.describe()["repeated_options"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "0,s,,M,N,q,yes,no,,,C",
            r"questions\.csv, line 3: Answer is 'C'; expected the letter of a filled option: A, B",
        ),
        ("0,s,,M,N,q,yes,,no,,B", "line 3: Answer is 'B'; expected the letter of a filled option: A, C"),
        ("0,s,,M,N,q,yes,no,,,b", "line 3: Answer is 'b'"),
        ("0,s,,M,N,q,yes,no,,,yes", "line 3: Answer is 'yes'"),
        ("0,s,,M,N,q,yes,no,,,", "line 3: column 'Answer' is empty"),
        ("0,,,M,N,q,yes,no,,,A", "line 3: column 'Slide' is empty"),
        ("0,s,,M,N,q,yes,,,,A", "line 3: question '0' has 1 options; at least two"),
        ("9,s,,M,N,q,yes,no,,,A", "line 3: ID '9' is duplicated"),
        (
            "0,s,,M,N,q, really,yes,no,,,A",
            "line 3: 12 values for 11 columns; values that contain a comma must be quoted",
        ),
    ],
)
def test_a_broken_question_is_refused_by_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_slidebench(file(tmp_path, f"{HEAD}9,s,,M,N,q,yes,no,,,A\n{row}\n"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no column 'Narrow Category'\. Did you mean 'Narrow category'"):
        read_slidebench(file(tmp_path, HEAD.replace("Narrow Category", "Narrow category") + "0,s,,M,N,q,yes,no,,,A\n"))


def test_bcnb(tmp_path: Path) -> None:
    read = read_bcnb(file(tmp_path, BCNB + "0,1,ER,Is ER positive?,Positive,Negative,,,A\n1,1,Grade,?,1,2,3,,C\n"))
    assert [(q.slide, q.broad, q.answer_text) for q in read.questions] == [("1", "ER", "Positive"), ("1", "Grade", "3")]
    assert read.line().startswith("SlideBench-VQA (BCNB): N = 2 about 1 slides, sha256 ")
    with pytest.raises(TableError, match="no column 'Task'"):
        read_bcnb(file(tmp_path, HEAD + "0,s,,M,N,q,yes,no,,,A\n"))
