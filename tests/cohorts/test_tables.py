from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abbe.cohorts.dataset import Batches, gather
from abbe.cohorts.tables import read_labels, split_patients
from abbe.errors import BagError, InputError, TableError
from abbe.store.bags import write_bag
from builders import make_bag


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    return path


def test_strings_stay_strings_and_a_byte_order_mark_is_no_name(tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffcase_id,slide_id,label\r\n001,0010,NA\r\n002,0020,1\r\n")
    read = read_labels(path)
    assert read["case_id"].tolist() == ["001", "002"]
    assert read["label"].tolist() == ["NA", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,slide_id,lable\n1,2,3\n", r"labels\.csv: no column 'label'. Did you mean 'lable'"),
        ("case_id,slide_id,label\n1,s,a\n1,s,a\n", r"line 3: slide 's' is listed a second time"),
        ("case_id,slide_id,label\n1,s,a\n1,t, \n", r"line 3: column 'label' is empty"),
        ("case_id,slide_id,label,split\n1,s,a,train\n1,t,a,tset\n", r"line 3: split is 'tset'; expected one of train"),
        (
            "case_id,slide_id,label,split\n1,s,a,train\n2,t,a,val\n1,u,a,test\n",
            r"line 4: patient '1' is in 'train' and",
        ),
        ("", "cannot be read as a csv table"),
    ],
)
def test_a_broken_table_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_labels(table(tmp_path, text))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nowhere\.csv: no such file"):
        read_labels(tmp_path / "nowhere.csv")


def test_real_clam_tables(data: Path) -> None:
    read = read_labels(data / "labels" / "clam" / "tumor_subtyping_dummy_clean.csv")
    assert {"case_id", "slide_id", "label"} <= set(read)
    assert read["slide_id"].is_unique


@given(st.integers(0, 2**31), st.lists(st.integers(1, 3), min_size=8, max_size=40))
@settings(max_examples=40, deadline=None)
def test_a_patient_is_never_on_two_sides(seed: int, slides: list[int]) -> None:
    rows = [(f"p{p}", f"p{p}s{s}", "ab"[p % 2]) for p, count in enumerate(slides) for s in range(count)]
    split = split_patients(pd.DataFrame(rows, columns=["case_id", "slide_id", "label"]), seed=seed)
    assert split.groupby("case_id")["split"].nunique().max() == 1
    for label in "ab":
        assert set(split[split["label"] == label]["split"]) == {"train", "val", "test"}
    again = split_patients(split.drop(columns="split"), seed=seed)
    assert split["split"].tolist() == again["split"].tolist()


def test_too_few_patients_are_refused() -> None:
    rows = pd.DataFrame({"case_id": ["1", "2"], "slide_id": ["1", "2"], "label": ["a", "a"]})
    with pytest.raises(TableError, match="label 'a' has 2 patients"):
        split_patients(rows)


def cohort(tmp_path: Path) -> pd.DataFrame:
    for number in range(3):
        write_bag(tmp_path / f"s{number}.h5", make_bag(4, slide_id=f"s{number}"))
    return pd.DataFrame(
        {
            "slide_id": ["s0", "s1", "s2"],
            "case_id": ["0", "1", "2"],
            "label": ["a", "b", "a"],
            "split": ["train", "val", "test"],
        }
    )


def test_gather_counts_what_cannot_be_used(tmp_path: Path) -> None:
    rows = cohort(tmp_path)
    (tmp_path / "s1.h5").write_text("broken")
    with pytest.raises(TableError, match=r"1 of 3 slides cannot be used: .*s1\.h5: not a readable.*--allow-missing"):
        gather(rows, tmp_path)
    found = gather(rows, tmp_path, allow_missing=True)
    assert list(found.left_out) == ["s1"]
    assert [item.slide_id for item in found.splits["train"] + found.splits["test"]] == ["s0", "s2"]
    assert (found.width, found.encoder, found.classes) == (16, "test", ("a", "b"))


def test_gather_refuses_two_widths(tmp_path: Path) -> None:
    rows = cohort(tmp_path)
    write_bag(tmp_path / "s2.h5", make_bag(4, dim=8, slide_id="s2"))
    with pytest.raises(BagError, match=r"s2\.h5: width 8, encoder 'test'; .*s0\.h5 has width 16"):
        gather(rows, tmp_path)


@given(st.integers(4, 60), st.integers(4, 9), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_slide_once_an_epoch_over_all_processes(n: int, size: int, world: int, epoch: int) -> None:
    shares = []
    for rank in range(world):
        batches = Batches(n, size, seed=7, rank=rank, world=world)
        batches.epoch = epoch
        shares.append(list(batches))
    assert all(len(share) == len(shares[0]) for share in shares)
    assert all(rows for share in shares for rows in share), "every process has something to do in every step"
    assert sorted(row for share in shares for rows in share for row in rows) == list(range(n))
    alone = Batches(n, size, seed=7)
    alone.epoch = epoch
    if len(alone) > len(shares[0]):
        return  # so few slides that a batch had to grow for every process to get one
    for step, whole in enumerate(alone):
        assert sorted(whole) == sorted(row for share in shares for row in share[step])


def test_too_many_processes_are_refused() -> None:
    with pytest.raises(InputError, match="3 slides in batches of 8 cannot be dealt to 4 processes"):
        Batches(3, 8, seed=0, world=4)
