from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abbe.data.benchmarks.prompts import read_conch_prompts
from abbe.data.benchmarks.titan import read_titan, read_titan_config
from abbe.data.cohort import load_cohort
from abbe.data.dataset import Batches
from abbe.data.labels import read_labels, read_split_tables, read_stamp_tables
from abbe.data.splits import read_clam_splits, split_patients
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
        ("case_id,slide_id,label\n1,s,a\n1,s,a\n", r"line 3: slide 's' is duplicated"),
        ("case_id,slide_id,label\n1,s,a\n1,t, \n", r"line 3: column 'label' is empty"),
        ("case_id,slide_id,label,split\n1,s,a,train\n1,t,a,tset\n", r"line 3: split is 'tset'; expected one of train"),
        (
            "case_id,slide_id,label,split\n1,s,a,train\n2,t,a,val\n1,u,a,test\n",
            r"line 4: patient '1' is in 'train' and",
        ),
        ("", "cannot be read as a csv table"),
        (" \n\n", r"labels\.csv: cannot be read as a csv table \(the file is empty\)"),
        ("case_id,slide_id,label\n", "a header but no rows"),
        ("case_id;slide_id;label\n1;s;a\n", "line 1: columns are separated by semicolons; save the table with commas"),
        ("case_id\tslide_id\tlabel\n1\ts\ta\n", "line 1: columns are separated by tabs"),
        ("case_id,slide_id,label,label\n1,s,a,b\n", r"line 1: column 'label' is duplicated \(2 times\)"),
        ("case_id,slide_id,label,,\n1,s,a,,\n", r"line 1: a column without a name is duplicated \(2 times\)"),
        ("case_id,slide_id,label\n1,s,a\n1,t\n", "line 3: 2 values for 3 columns"),
        ("case_id,slide_id,label\n1,s,a,\n1,t,b,\n", "line 2: 4 values for 3 columns"),
        ('case_id,slide_id,label\n1,s,"a\n1,t,b\n', "line 2: cannot be read as a csv table"),
        # A quoted line break makes rows and lines differ; the line of the file is what an editor shows.
        ('case_id,slide_id,label\n1,s,"a\nb"\n\n1,s,a\n', "line 5: slide 's' is duplicated"),
        ("case_id,slide_id,label\n1,s,a\0\n", "line 2: contains a null byte"),
    ],
)
def test_a_broken_table_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_labels(table(tmp_path, text))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nowhere\.csv: no such file"):
        read_labels(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case_id,slide_id,label\n1,s,a\n2,t,Übergang\n".encode("latin-1"), r"line 3: not UTF-8 \(byte 0xdc\)"),
        ("case_id,slide_id,label\n1,s,a\n".encode("utf-16"), r"line 1: not UTF-8 \(UTF-16\); save the file as UTF-8"),
        (b"PK\x03\x04rest", "an Excel workbook, not a csv table; save it as a csv"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_labels(path)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read as a csv table"):
        read_labels(tmp_path)


LABELS = "case_id,slide_id,label\n1,001,a\n1,002,a\n2,003,b\n3,004,b\n4,005,b\n"


def with_splits(tmp_path: Path, text: str, labels: str = LABELS) -> pd.DataFrame:
    (tmp_path / "splits_0.csv").write_text(text)
    return read_labels(table(tmp_path, labels), splits=tmp_path / "splits_0.csv")


def test_clam_splits_of_unequal_lengths(tmp_path: Path) -> None:
    read = with_splits(tmp_path, ",train,val,test\n0,001,003,004\n1,002,,\n")
    assert dict(zip(read["slide_id"], read["split"], strict=True)) == {
        "001": "train",
        "002": "train",
        "003": "val",
        "004": "test",
    }
    assert read.attrs["outside_splits"] == ["005"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",train,val,test\n0,001,001,004\n", r"splits_0\.csv, line 2: slide '001' is in 'train' and in 'val'"),
        (",train,val,test\n0,001,003,004\n1,001,,\n", "line 3: slide '001' is duplicated in 'train'"),
        (
            ",train,val,test\n0,001,003,004\n1,,002,\n",
            r"splits_0\.csv, line 3 \(slide '002'\): patient '1' is in 'train' and in 'val'",
        ),
        (",train,val,test\n0,001,003,1\n", r"line 2: slide '1' of column 'test' is not in .*labels\.csv"),
        (",train,val\n0,001,003\n", r"splits_0\.csv: no column 'test'"),
        (
            ",train,val,test\n001,True,False,False\n002,False,True,False\n",
            "contains True and False, like splits_k_bool.csv",
        ),
        (",train,val,test\nnormal,2,1,1\ntumour,3,1,1\n", "contains counts, like splits_k_descriptor.csv"),
    ],
)
def test_broken_clam_splits_are_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        with_splits(tmp_path, text)


def test_two_sources_of_splits_are_refused(tmp_path: Path) -> None:
    labels = "case_id,slide_id,label,split\n1,s,a,train\n"
    with pytest.raises(TableError, match="already has a column 'split'; remove it, or do not pass the splits file"):
        with_splits(tmp_path, ",train,val,test\n0,s,,\n", labels)


def test_real_clam_splits(data: Path) -> None:
    folder = data / "labels" / "clam"
    read = read_labels(
        folder / "tumor_vs_normal_dummy_clean.csv", splits=folder / "splits" / "splits_0.csv", require_split=True
    )
    assert read["split"].value_counts().to_dict() == {"train": 300, "val": 51, "test": 48}
    assert len(read.attrs["outside_splits"]) == 101
    assert read_clam_splits(folder / "splits" / "splits_0.csv") == dict(
        zip(read["slide_id"], read["split"], strict=True)
    )
    for name, what in (("bool", "True and False"), ("descriptor", "counts")):
        with pytest.raises(TableError, match=what):
            read_clam_splits(folder / "splits" / f"splits_0_{name}.csv")


def stamp(tmp_path: Path, clini: str, slides: str) -> pd.DataFrame:
    (tmp_path / "clini.csv").write_text(clini)
    (tmp_path / "slides.csv").write_text(slides)
    return read_stamp_tables(tmp_path / "clini.csv", tmp_path / "slides.csv", label="MSI")


def test_stamp_tables(tmp_path: Path) -> None:
    read = stamp(
        tmp_path,
        "PATIENT,MSI,AGE\n001,high,60\n002,low,\n003,low,50\n",
        "PATIENT,FILENAME\n001,x/a.1.h5\n001,b.h5\n002,c\n",
    )
    assert read.to_dict("records") == [
        {"slide_id": "a.1", "case_id": "001", "MSI": "high", "AGE": "60"},
        {"slide_id": "b", "case_id": "001", "MSI": "high", "AGE": "60"},
        {"slide_id": "c", "case_id": "002", "MSI": "low", "AGE": ""},
    ]
    assert read.attrs["without_slides"] == ["003"]


@pytest.mark.parametrize(
    ("clini", "slides", "message"),
    [
        ("PATIENT,MSI\n1,a\n1,b\n", "PATIENT,FILENAME\n1,s\n", r"clini\.csv, line 3: patient '1' is duplicated"),
        ("PATIENT,MSI\n1,\n", "PATIENT,FILENAME\n1,s\n", r"clini\.csv, line 2: column 'MSI' is empty"),
        ("PATIENT,msi\n1,a\n", "PATIENT,FILENAME\n1,s\n", r"clini\.csv: no column 'MSI'"),
        ("PATIENT,MSI\n1,a\n", "PATIENT,FILENAME\n1,s\n2,t\n", r"slides\.csv, line 3: patient '2' is not in .*clini"),
        (
            "PATIENT,MSI\n1,a\n",
            "PATIENT,FILENAME\n1,s\n1,x/s.h5\n",
            r"slides\.csv, line 3: slide 's' is duplicated",
        ),
    ],
)
def test_broken_stamp_tables_are_refused(tmp_path: Path, clini: str, slides: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        stamp(tmp_path, clini, slides)


def split_tables(tmp_path: Path, test: str) -> pd.DataFrame:
    rows = {"train": "1,s,a\n1,t,a\n", "val": "2,u,b\n", "test": test}
    head = "case_id,slide_id,label\n"
    for split, text in rows.items():
        (tmp_path / f"{split}.csv").write_text(text if text.startswith("case") else head + text)
    return read_split_tables(*(tmp_path / f"{split}.csv" for split in rows))


def test_three_tables_as_one(tmp_path: Path) -> None:
    read = split_tables(tmp_path, "3,v,a\n")
    assert list(zip(read["slide_id"], read["split"], strict=True)) == [
        ("s", "train"),
        ("t", "train"),
        ("u", "val"),
        ("v", "test"),
    ]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("3,v,a\n3,s,a\n", r"test\.csv, line 3: slide 's' is also in split 'train'"),
        ("1,v,a\n", r"test\.csv, line 2: patient '1' is in 'train' and in 'test'"),
        ("case_id,slide_id,label,age\n3,v,a,1\n", r"test\.csv: columns differ from those of .*train\.csv: \['age'\]"),
    ],
)
def test_three_tables_that_overlap_are_refused(tmp_path: Path, test: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        split_tables(tmp_path, test)


def test_real_ebrains_splits(data: Path) -> None:
    folder = data / "labels" / "panther" / "ebrains"
    read = read_split_tables(*(folder / f"{split}.csv" for split in ("train", "val", "test")), label="diagnosis")
    assert read["split"].value_counts().to_dict() == {"train": 1151, "val": 595, "test": 573}
    assert read["diagnosis"].nunique() == 30


def test_real_titan_task(data: Path) -> None:
    folder = data / "labels" / "titan_tcga_ot"
    read, task = read_titan(
        *(folder / f"tcga-ot_{split}.csv" for split in ("train", "val", "test")), folder / "config_tcga-ot.yaml"
    )
    assert read["split"].value_counts().to_dict() == {"train": 8226, "val": 1612, "test": 1348}
    assert (len(task.classes), task.classes[0], task.classes[45]) == (46, "AASTR", "USC")
    assert set(read["OncoTreeCode"]) == set(task.classes)
    assert "anaplastic astrocytoma" in task.prompts.texts("AASTR")


TASK = "target: code\nlabel_dict:\n  A: 0\n  B: 1\nprompts:\n  A: [one]\n  B: [two]\n"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("B: 1", "A: 1", r"task\.yaml: not a valid task yaml \(key 'A' is duplicated"),
        ("B: 1", "NO: 1", "key 'label_dict': code False is a bool; put it in quotes"),
        ("B: [two]", "NO: [two]", "key 'prompts': class False is a bool; put it in quotes"),
        ("B: 1", "B: 2", "key 'label_dict': indices must be 0 to 1, each used once"),
        ("B: 1", "C: 1", r"\['B', 'C'\] are in only one of label_dict and prompts"),
        ("[two]", "[]", r"key 'prompts', class 'B': expected a non-empty list of strings"),
        ("target: code", "target: [", "not a valid task yaml"),
        ("target: code\n", "", "key 'target' is None; expected a str"),
        ("target: code", "target: !!python/object/apply:os.getcwd []", "not a valid task yaml"),
    ],
)
def test_a_broken_titan_task_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(TASK)
    assert read_titan_config(path).classes == ("A", "B")
    path.write_text(TASK.replace(before, after))
    with pytest.raises(TableError, match=message):
        read_titan_config(path)


def test_a_titan_table_with_an_unknown_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(TASK)
    paths = []
    for number, code in enumerate("ABX"):
        paths.append(tmp_path / f"{number}.csv")
        paths[-1].write_text(f"slide_id,case_id,code\ns{number},c{number},{code}\n")
    with pytest.raises(
        TableError, match=r"task\.yaml, key 'label_dict': the codes \['X'\] of column 'code' are missing"
    ):
        read_titan(*paths, tmp_path / "task.yaml")


def test_real_conch_prompts(data: Path) -> None:
    read = read_conch_prompts(data / "prompts" / "conch" / "nsclc_prompts_all_per_class.json")
    assert {name: len(words) for name, words in read.names.items()} == {"LUAD": 4, "LUSC": 4}
    assert len(read.texts("LUAD")) == 4 * 22
    assert "an image of lung adenocarcinoma." in read.texts("LUAD")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"0": {"classnames": {"A": ["a"]}, "templates": ["a photo."]}}',
            "template 'a photo.' does not contain CLASSNAME",
        ),
        (
            '{"0": {"classnames": {"A": []}, "templates": ["CLASSNAME."]}}',
            "class 'A': expected a non-empty list of strings",
        ),
        ('{"0": {"classnames": {}, "templates": ["CLASSNAME."]}}', "expected an object of the form"),
        ('{"0": {"names": {}}}', "expected the keys classnames and templates"),
        ('{"0": {}, "1": {}}', "contains 2 prompt sets; set group to one of 0, 1"),
        ("[]", "expected an object of prompt sets"),
    ],
)
def test_broken_conch_prompts_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(TableError, match=message):
        read_conch_prompts(tmp_path / "prompts.json")


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
    with pytest.raises(
        TableError, match=r"1 of 3 slides cannot be used: .*s1\.h5: cannot be opened as HDF5.*--allow-missing"
    ):
        load_cohort(rows, tmp_path)
    found = load_cohort(rows, tmp_path, allow_missing=True)
    assert list(found.left_out) == ["s1"]
    assert [item.slide_id for item in found.splits["train"] + found.splits["test"]] == ["s0", "s2"]
    assert (found.width, found.encoder, found.classes) == (16, "test", ("a", "b"))


def test_gather_refuses_two_widths(tmp_path: Path) -> None:
    rows = cohort(tmp_path)
    write_bag(tmp_path / "s2.h5", make_bag(4, dim=8, slide_id="s2"))
    with pytest.raises(BagError, match=r"s2\.h5: width 8, encoder 'test'; .*s0\.h5 has width 16"):
        load_cohort(rows, tmp_path)


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


def test_weighted_batches_draw_rare_rows_more_often_and_are_the_same_again() -> None:
    weights = [9.0] * 10 + [1.0] * 90
    epochs = []
    for epoch in range(30):
        batches = Batches(100, 8, seed=7, weights=weights)
        batches.epoch = epoch
        epochs.append([row for rows in batches for row in rows])
        again = Batches(100, 8, seed=7, weights=weights)
        again.epoch = epoch
        assert [row for rows in again for row in rows] == epochs[-1]
    assert all(len(rows) == 100 for rows in epochs)
    drawn = np.array(epochs)
    assert (drawn < 10).mean() == pytest.approx(0.5, abs=0.03)
    assert len(set(drawn[0])) < 100


def test_too_many_processes_are_refused() -> None:
    with pytest.raises(InputError, match="3 slides in batches of 8 cannot be divided among 4 processes"):
        Batches(3, 8, seed=0, world=4)
