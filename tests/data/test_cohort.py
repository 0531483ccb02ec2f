"""A cohort is looked at as a whole: its labels, the kinds of its features, and whose features they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from abbe.data.cohort import Cohort, load_cohort, read_cohort
from abbe.data.label_checks import alike, not_known, two_labels
from abbe.data.settings import CohortSettings
from abbe.errors import BagError, TableError
from abbe.store.kind import Kind
from abbe.store.trident import write_features
from builders import make_bag, write_cohort


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 feature files, s00 to s11."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=12, n=4)[0]


def table(folder: Path, labels: list[str], splits: list[str] | None = None) -> Path:
    rows = {"slide_id": [f"s{n:02d}" for n in range(12)], "case_id": list(map(str, range(12))), "label": labels}
    pd.DataFrame(rows if splits is None else rows | {"split": splits}).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def read(features: Path, labels: Path, **options: Any) -> Cohort:
    return read_cohort(CohortSettings(features=features, labels=labels, **options))


@pytest.mark.parametrize("value", ["NA", "n/a", " nan", "Unknown", "[Not Available]", "#N/A"])
def test_a_value_that_means_not_known_is_refused_as_a_class(value: str, features: Path, tmp_path: Path) -> None:
    labels = table(tmp_path, ["a", "b", value] * 4)
    with pytest.raises(TableError, match=r"labels\.csv.*'label'.*4 slides.*s02.*--allow-labels na"):
        read(features, labels)
    assert value.strip() in read(features, labels, allow_labels=("na",)).classes


@pytest.mark.parametrize(("one", "other"), [("Tumour", "tumour"), ("grade 1", "grade  1"), ("0", "0.0"), ("1", "01")])
def test_values_that_are_alike_are_refused_as_two_classes(one: str, other: str, features: Path, tmp_path: Path) -> None:
    labels = table(tmp_path, [one, other, "b"] * 4)
    with pytest.raises(TableError, match=rf"labels\.csv.*'label'.*'{one}'.*'{other}'.*--allow-labels alike"):
        read(features, labels, allow_labels=("na", "untrained"))
    assert {one, other} <= set(read(features, labels, allow_labels=("alike",)).classes)


def test_classes_that_only_look_alike_are_accepted() -> None:
    assert not_known(["nab", "banana", "0", "none", "negative"]) == []
    assert alike(["0", "1", "10", "1.5", "3+4", "4+3", "T1", "T2", "HER2 0", "HER2 1+"]) == []


def test_a_class_without_training_slides_is_refused(features: Path, tmp_path: Path) -> None:
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    labels = table(tmp_path, ["a", "b"] * 5 + ["rare", "b"], splits)
    with pytest.raises(TableError, match=r"labels\.csv.*'label'.*'rare'.*rare: train 0, val 0, test 1.*untrained"):
        read(features, labels)
    cohort = read(features, labels, allow_labels=("untrained",))
    assert cohort.untrained == ("rare",)
    assert cohort.counts == {
        "a": {"train": 3, "val": 1, "test": 1},
        "b": {"train": 3, "val": 1, "test": 2},
        "rare": {"train": 0, "val": 0, "test": 1},
    }
    assert any("'rare'" in remark for remark in cohort.remarks)
    assert "rare: train 0, val 0, test 1" in cohort.describe()


def test_patients_whose_slides_have_two_labels_are_said(features: Path, tmp_path: Path) -> None:
    labels = table(tmp_path, ["a", "b"] * 6)
    assert read(features, labels).remarks == ()
    rows = pd.read_csv(labels, dtype=str)
    rows["case_id"] = ["0", "0", "1", "1", *map(str, range(2, 10))]
    rows.to_csv(labels, index=False)
    (remark,) = read(features, labels).remarks
    assert remark.startswith("2 of 10 patients")
    assert "0 (a, b)" in remark
    assert two_labels(["1", "1"], ["a", "a"]) == []


def mixed(folder: Path, *kinds: Kind) -> tuple[Path, Path]:
    """Twelve files, of these kinds in turn."""
    (folder / "features").mkdir()
    for number in range(12):
        bag = make_bag(4, slide_id=f"s{number:02d}", seed=number)
        write_features(folder / "features" / f"s{number:02d}.h5", bag, kind=kinds[number % len(kinds)])
    return folder / "features", table(folder, ["a", "b"] * 6)


FINE, COARSE = Kind("test", "2", 0.5, 256, 0), Kind("test", "2", 1.0, 128, 0)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (COARSE, "mpp 0.5 and 1"),
        (Kind("test", "3", 0.5, 256, 0), "version 2 and 3"),
        (Kind("test", "2", 0.5, 256, 32), "overlap 0 and 32"),
    ],
)
def test_features_of_two_kinds_are_refused_and_listed(other: Kind, said: str, tmp_path: Path) -> None:
    features, labels = mixed(tmp_path, FINE, other)
    with pytest.raises(BagError, match=rf"features: .*2 kinds.*{said}.*6 \(s00, s02.*6 \(s01, s03.*--allow-mixed"):
        read(features, labels)
    cohort = read(features, labels, allow_mixed=True)
    assert cohort.mixed
    assert any(said in remark for remark in cohort.remarks)
    assert cohort.kind.differences(FINE) == cohort.kind.differences(other) == []


def test_one_kind_is_the_cohort_s_and_what_some_files_do_not_state_is_said(tmp_path: Path) -> None:
    features, labels = mixed(tmp_path, FINE)
    cohort = read(features, labels)
    assert (cohort.mixed, cohort.remarks, cohort.kind.own()) == (False, (), FINE.own())
    write_features(features / "s03.h5", make_bag(4, slide_id="s03", seed=3), kind=Kind())
    cohort = read(features, labels)
    assert cohort.kind.own() == FINE.own()
    assert len(cohort.remarks) == 4
    assert all("1 of 12" in remark and "s03" in remark for remark in cohort.remarks)


@pytest.mark.parametrize("slide_id", ["../features/s00", "./s00", "sub/s00", "..", r"sub\s00"])
def test_an_id_with_a_path_in_it_is_refused(slide_id: str, features: Path) -> None:
    rows = pd.DataFrame({"slide_id": ["s01", slide_id], "case_id": ["1", "2"], "label": ["a", "b"], "split": "train"})
    with pytest.raises(TableError, match=r"slide_id '.*' contains a path"):
        load_cohort(rows, features)


@pytest.mark.parametrize("link", [False, True])
def test_one_file_under_two_ids_is_refused(link: bool, features: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    shutil.copytree(features, folder)
    (folder / "s07.h5").unlink()
    if link:
        (folder / "s07.h5").symlink_to(folder / "s02.h5")
    else:
        shutil.copyfile(folder / "s02.h5", folder / "s07.h5")
    with pytest.raises(TableError, match=r"s07\.h5: slide 's07'.*slide 's02'.*s02\.h5"):
        read(folder, table(tmp_path, ["a", "b"] * 6))


def test_one_slide_encoded_under_two_names_is_refused(tmp_path: Path) -> None:
    features, labels = mixed(tmp_path, FINE)
    made_with = {"slide": {"size": 7, "sha256_ends": "0" * 64}}
    for number in (3, 8):
        bag = make_bag(4, slide_id=f"s{number:02d}", seed=number)
        write_features(features / f"s{number:02d}.h5", bag, made_with=made_with, kind=FINE)
    with pytest.raises(TableError, match=r"slide 's\d\d'.*slide 's\d\d'") as refused:
        read(features, labels)
    assert "'s03'" in str(refused.value)
    assert "'s08'" in str(refused.value)
