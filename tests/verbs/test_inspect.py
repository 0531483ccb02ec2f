"""Every kind of thing is told for what it is, with its figures, its problems and their remedies."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from abbe import cli
from abbe.errors import InputError
from abbe.inspection.finding import Finding
from abbe.inspection.paths import inspect_paths
from abbe.models.classifier import Classifier
from abbe.models.condense import condense_slide
from abbe.models.config import ClassifierConfig
from abbe.models.hub import load, save_pretrained
from abbe.models.record import make_record
from abbe.store.bags import write_bag
from abbe.store.commit import write_text
from abbe.store.kind import Kind
from abbe.store.tokens import write_tokens
from abbe.verbs.inspect import Inspect
from builders import make_bag


def look(*paths: Path, **options: object) -> list[Finding]:
    return inspect_paths(paths, Inspect(paths=paths, **options))  # type: ignore[arg-type]


def one(path: Path, **options: object) -> Finding:
    (finding,) = look(path, **options)
    return finding


@pytest.mark.slow
def test_a_slide_its_geometry_and_what_is_never_read(data: Path) -> None:
    finding = one(data / "slides" / "cmu-1-small-region.svs")
    assert (finding.kind, finding.readable, finding.problems) == ("slide", True, [])
    assert finding.facts["format"] == "aperio"
    assert finding.facts["size, level-0 pixels"] == [2220, 2967]
    assert finding.facts["patches of 256 at 0.5 µm per pixel"] == 44
    assert finding.facts["label and other images"].startswith("never read: label, macro")
    text = json.dumps(finding.facts)
    assert "ScanScope" not in text  # properties are chosen one by one: none that may name a patient slips through


@pytest.mark.slow
def test_a_slide_without_mpp_says_which_option_helps(data: Path) -> None:
    slide = data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    refused = one(slide)
    assert (refused.kind, refused.readable) == ("slide", False)
    assert "--override-mpp" in refused.problems[0]
    assert one(slide, override_mpp=0.5).facts["patches of 256 at 0.5 µm per pixel"] == 160


@pytest.mark.slow
def test_what_is_no_slide_and_a_series_of_many_files(data: Path) -> None:
    broken = one(data / "slides_broken" / "broken.svs")
    assert (broken.kind, broken.readable) == ("unreadable slide", False)
    (series,) = look(data / "slides" / "cmu1_small_dicom")
    assert series.path.endswith("cmu1_small_dicom")
    assert series.facts["files"] == 12
    assert any("colour" in problem for problem in series.problems)


def test_a_feature_file_and_its_problems(tmp_path: Path) -> None:
    bag = make_bag(30)
    bag.features[3:5] = 0
    bag.features[7] = bag.features[8]
    write_bag(tmp_path / "s.h5", bag)
    finding = one(tmp_path / "s.h5")
    assert (finding.kind, finding.readable) == ("feature file", True)
    assert finding.facts["patches"] == 30
    assert finding.facts["encoder"] == "test"
    assert finding.facts["kind"] == "test, mpp unknown, patches of 256 px at level 0, overlap unknown"
    assert finding.facts["patch size, level-0 pixels"] == 256
    assert finding.facts["corners from, to"] == "(0, 0), (2304, 512)"
    assert finding.facts["written by"].endswith("trident-features version 1")
    assert [problem.split(" patches ")[0] for problem in finding.problems] == ["2", "1"]


def test_a_feature_file_that_is_refused_names_the_option(data: Path) -> None:
    path = data / "features" / "mopadi" / "TCGA-AD-6964-01Z-00-DX1" / "features.h5"
    refused = one(path)
    assert not refused.readable
    assert refused.facts["patches"] == 777
    assert "--patch-size-level0" in refused.problems[0]
    helped = one(path, patch_size_level0=512)
    assert helped.readable
    assert helped.facts["width"] == 512


def test_an_altered_file_is_told_by_its_hash(tmp_path: Path) -> None:
    write_bag(tmp_path / "s.h5", make_bag(5))
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["features"].attrs["encoder"] = "other"
    assert any(
        "the hash differs from the recorded one" in p or "cut short" in p for p in one(tmp_path / "s.h5").problems
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    classifier = Classifier(ClassifierConfig(16, ("a", "b"), "tcssa", {"tokens": 4, "hidden": 8}, encoder="test"))
    save_pretrained(classifier.eval(), tmp_path / "model", card="# x\n")
    write_tokens(tmp_path / "tokens.safetensors", condense_slide(classifier, make_bag(20)))
    return tmp_path / "model"


def test_a_model_and_tokens(model: Path) -> None:
    finding = one(model)
    assert finding.kind == "model"
    assert finding.facts["classes"] == "a, b"
    assert finding.facts["encoder"] == "test"
    assert any("not recorded which slides" in problem for problem in finding.problems)
    classifier = load(model)
    classifier.record = make_record(Kind("test", mpp=0.5), [("train", "0" * 64, "p1"), ("test", "1" * 64, "p2")])
    save_pretrained(classifier, model.parent / "recorded", card="# x\n")
    recorded = one(model.parent / "recorded")
    assert recorded.facts["slides it has seen"] == "train 1, val 0"
    assert "mpp 0.5" in recorded.facts["features"]
    assert recorded.problems == []
    condensed = one(model.parent / "tokens.safetensors")
    assert condensed.kind == "condensed slide"
    assert condensed.facts["patches"] == 20
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    torn = one(model)
    assert not torn.readable
    assert "model.safetensors: the file has changed since it was written" in torn.problems[0]


@pytest.mark.parametrize(
    ("path", "kind", "fact"),
    [
        ("labels/clam/tumor_vs_normal_dummy_clean.csv", "labels", ("slides", 500)),
        ("labels/clam/splits/splits_0.csv", "splits in CLAM's form", ("val", "51 slides")),
        ("labels/titan_tcga_ot/tcga-ot_val.csv", "labels", ("slides", 1612)),
        ("labels/titan_tcga_ot/config_tcga-ot.yaml", "task with prompts", ("classes", 46)),
        ("vqa/slidebench/SlideBench-VQA-TCGA_sample.csv", "questions, SlideBench-VQA", ("n", 200)),
        ("vqa/wsi_vqa/WsiVQA_val.json", "questions, WSI-VQA", ("n", 798)),
        ("prompts/conch/nsclc_prompts_all_per_class.json", "class prompts", None),
    ],
)
def test_real_tables(data: Path, path: str, kind: str, fact: tuple[str, object] | None) -> None:
    finding = one(data / path)
    assert (finding.kind, finding.readable) == (kind, True)
    assert len(finding.facts["sha256"]) == 64
    if fact is not None:
        assert finding.facts[fact[0]] == fact[1]


def test_only_the_label_s_values_are_shown(tmp_path: Path) -> None:
    rows = [{"slide_id": f"s{n}", "case_id": f"c{n}", "patientName": "Jo Doe", "grade": f"G{n % 3}"} for n in range(9)]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    finding = one(tmp_path / "t.csv")
    assert finding.facts["columns that may be a label"] == {"grade": "3 values"}
    assert "Jo" not in finding.lines()
    assert "G0" not in finding.lines()
    assert "--label" in finding.problems[0]
    assert one(tmp_path / "t.csv", label="grade").facts["label 'grade'"] == {"G0": 3, "G1": 3, "G2": 3}


@pytest.mark.parametrize("text", ["5", '{"train": 1, "val": 2, "test": 3}', "[]", "[1]", "{", "", "null"])
def test_any_json_is_a_finding(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.json").write_text(text)
    finding = one(tmp_path / "n.json")
    assert finding.kind == ("unreadable" if text in ("{", "") else "json")


def test_what_cannot_be_read_in_a_folder_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("slide_id,case_id,label\na,b,é\n".encode("latin-1"))
    (tmp_path / "torn.safetensors").write_bytes(b"xx")
    (tmp_path / "torn.safetensors.sha256.json").write_text("{")
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "cohort.json").write_text("[1")
    write_bag(tmp_path / "s.h5", make_bag(5))
    found = {Path(finding.path).name: finding.readable for finding in look(tmp_path)}
    assert found == {"latin.csv": False, "torn.safetensors": False, "cohort": False, "s.h5": True}


def test_a_refused_table_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("slide_id,case_id,label,split\na,1,x,train\nb,1,y,test\n")
    finding = one(tmp_path / "t.csv")
    assert not finding.readable
    assert "line 3: patient '1'" in finding.problems[0]


def test_a_table_of_no_kind_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    assert one(tmp_path / "t.csv").kind == "unknown table"


def test_a_folder_is_gone_through_once_and_a_pipe_does_not_hang(tmp_path: Path, model: Path) -> None:
    write_bag(tmp_path / "features" / "s.h5", make_bag(5))
    write_text(tmp_path / "notes.txt", "hello", format="notes")
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "gone.h5").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    *findings, folder = look(tmp_path)
    assert folder.facts == {"inspected": 5, "unsupported": 1}
    kinds = {Path(finding.path).name: (finding.kind, finding.readable) for finding in findings}
    assert kinds == {
        "s.h5": ("feature file", True),
        "model": ("model", True),
        "tokens.safetensors": ("condensed slide", True),
        "pipe.svs": ("not a slide", False),
        "gone.h5": ("not a slide", False),
    }


def test_the_verb_prints_exits_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bag(tmp_path / "s.h5", make_bag(5))
    assert cli.run(["inspect", str(tmp_path / "s.h5"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["facts"]["patches"] == 5
    torch.save({"features": torch.zeros(3, 2)}, tmp_path / "t.pt")
    (tmp_path / "bad.h5").write_bytes(b"no")
    assert cli.run(["inspect", str(tmp_path)]) == 1
    assert "bad.h5: feature file (not usable)" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such file or folder"):
        look(tmp_path / "absent")
    np.save(tmp_path / "plain.npy", np.zeros((3, 2), np.float32))


def test_labels_are_looked_at_as_a_set(tmp_path: Path) -> None:
    rows = [("1", "a", "Tumour"), ("1", "b", "tumour"), ("2", "c", "NA"), ("3", "d", "benign")]
    text = "\n".join(",".join(row) for row in [("case_id", "slide_id", "label"), *rows])
    (tmp_path / "labels.csv").write_text(text + "\n")
    unknown, same, several, _ = one(tmp_path / "labels.csv").problems
    assert "'NA'" in unknown
    assert "'Tumour'" in same
    assert "'tumour'" in same
    assert several.startswith("1 of 3 patients")
