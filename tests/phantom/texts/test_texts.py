from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from abbe.data.benchmarks.slidebench import read_slidebench
from abbe.data.benchmarks.slideinstruct import read_slideinstruct
from abbe.errors import InputError
from abbe.phantom.render.tissue import TISSUE_CLASSES
from abbe.phantom.texts.texts import TEMPLATES, Row, SlideTruth, describe_questions, make_questions, write_texts
from abbe.store import commit
from conftest import ROOT

NORMAL = [name for name in TISSUE_CLASSES if not name.startswith("tumour")]


def truth(number: int, split: str = "train", n: int = 300) -> SlideTruth:
    """One random slide; every fifth without tumour, every third without a value for metastasis."""
    rng = np.random.default_rng(number)
    size = 0 if number % 5 == 0 else int(rng.choice([1, 3, 5, 6, 20, 21, 60]))
    deposit = size if rng.random() < 0.7 else -(-size // 2)
    rest = rng.multinomial(n - size, rng.dirichlet(np.full(6, 0.6)))
    counts = {name: int(count) for name, count in zip(NORMAL, rest, strict=True)}
    subtype, grade = (str(rng.choice(["a", "b"])), int(rng.integers(1, 4))) if size else ("", 0)
    if size:
        counts[f"tumour_{subtype}{grade}"] = size
    return SlideTruth(
        slide_id=f"s{number:04d}",
        case_id=f"p{number:04d}",
        site=number % 3,
        split=split,
        n_patches=n,
        counts=counts,
        subtype=subtype,
        grade=grade,
        metastasis=None if number % 3 == 0 else bool(size and rng.random() < 0.5),
        til_pattern=str(rng.choice(["inside", "margin", "none"])) if size else "none",
        deposit_patches=deposit,
        seed=number,
    )


TRUTHS = [truth(i, "train" if i < 150 else "val" if i < 200 else "test") for i in range(300)]
ROWS = make_questions(TRUTHS, seed=7)


def expected(t: SlideTruth) -> dict[str, str | None]:
    """The rules of docs/questions.md, written a second time."""
    c = defaultdict(int, t.counts)
    n = t.n_patches
    tumour = sum(count for name, count in c.items() if "tumour" in name)

    def amount(name: str) -> str:
        if c[name] == 0:
            return "none"
        percent = 100 * c[name] / n
        return "under 15 %" if percent < 15 else "15 % to 30 %" if percent <= 30 else "over 30 %"

    def more(*names: str) -> str | None:
        best = [name for name in names if c[name] == max(c[other] for other in names)]
        return best[0] if len(best) == 1 else None

    def seen(value: str) -> str:
        return value if tumour else "no tumour is seen"

    def yes(value: object) -> str:
        return "yes" if value else "no"

    percent = 100 * tumour / n
    lymphocytes = 100 * c["lymphocytes"] / n
    points = t.grade - 1 + (percent >= 2) + (100 * c["necrosis"] / n >= 15)
    where = {"inside": 0, "margin": 1, "none": 2}[t.til_pattern]
    size = t.deposit_patches
    cells = more("lymphocytes", "gland")
    stage = "metastatic" if t.metastasis else "localised, large" if percent >= 2 else "localised, small"
    step = "systemic therapy" if t.metastasis else "excision and systemic therapy" if t.grade == 3 else "excision"
    other = "inflammation" if lymphocytes > 30 else "necrosis without tumour" if c["necrosis"] else "none of these"
    return {
        "dominant_tissue": more("stroma", "muscle", "fat", "gland"),
        "gland_amount": amount("gland"),
        "fat_amount": amount("fat"),
        "muscle_amount": amount("muscle"),
        "stroma_or_muscle": more("stroma", "muscle"),
        "tumour_extent": seen("under 0.5 %" if percent < 0.5 else "0.5 % to 2 %" if percent <= 2 else "over 2 %"),
        "growth": seen("forms glands" if t.subtype == "a" else "grows in solid sheets"),
        "deposits": seen("one" if size == tumour else "more than one"),
        "keratin": yes((t.subtype, t.grade) in {("b", 1), ("b", 2)}),
        "necrosis_present": yes(c["necrosis"]),
        "necrosis_amount": amount("necrosis"),
        "lymphocyte_density": "low" if lymphocytes < 10 else "moderate" if lymphocytes <= 30 else "high",
        "lymphocyte_place": seen(
            ["inside the tumour", "along the margin of the tumour", "neither inside nor along the margin"][where]
        ),
        "necrosis_or_lymphocytes": more("necrosis", "lymphocytes"),
        "pleomorphism": seen(["", "mild", "moderate", "marked"][t.grade]),
        "lymphocytes_or_glands": "glandular cells" if cells == "gland" else cells,
        "tumour_present": yes(tumour),
        "metastasis": None if t.metastasis is None else yes(t.metastasis),
        "subtype": seen("gland-forming carcinoma" if t.subtype == "a" else "solid or keratinising carcinoma"),
        "grade": seen(f"grade {t.grade}"),
        "high_grade": yes(t.grade == 3),
        "deposit_size": seen(
            "up to 5 patches" if size <= 5 else "6 to 20 patches" if size <= 20 else "over 20 patches"
        ),
        "stage": None if t.metastasis is None else stage if tumour else "no tumour stage",
        "differential": "carcinoma" if tumour else other,
        "certainty": seen("further stains are needed" if t.grade == 3 else "its own marks are enough"),
        "risk_group": seen({0: "low", 1: "low", 2: "intermediate"}.get(points, "high")),
        "necrosis_risk": yes(tumour and 100 * c["necrosis"] / n >= 15),
        "outlook": seen(["favourable", "intermediate", "unfavourable"][where]),
        "next_step": step if tumour else "no treatment",
        "immune_pattern": seen(["inflamed", "excluded", "desert"][where]),
        "marker_panel": seen(f"markers of {'glandular' if t.subtype == 'a' else 'squamous'} origin"),
    }


def test_every_answer_follows_from_the_truth() -> None:
    found: dict[str, dict[str, str | None]] = {t.slide_id: dict.fromkeys(expected(t)) for t in TRUTHS}
    for row in ROWS:
        found[row["Slide"]][row["template"]] = row[row["Answer"]]
    assert found == {t.slide_id: expected(t) for t in TRUTHS}
    # Every option of every template is right for some slide: none is a distractor that gives itself away.
    said = {(row["template"], row[row["Answer"]]) for row in ROWS}
    assert said == {(template.name, option) for template in TEMPLATES for option in template.options}


@pytest.mark.parametrize(
    ("percent", "words"),
    [(0, "none"), (14.5, "under 15 %"), (15, "15 % to 30 %"), (30, "15 % to 30 %"), (30.5, "over 30 %")],
)
def test_bounds_belong_to_the_bin_that_names_them(percent: float, words: str) -> None:
    fat = int(2 * percent)
    slide = dataclasses.replace(
        truth(0), n_patches=200, counts={"fat": fat, "stroma": 200 - fat}, metastasis=None, deposit_patches=0
    )
    (row,) = [row for row in make_questions([slide], seed=0) if row["template"] == "fat_amount"]
    assert row[row["Answer"]] == words


def test_templates_are_as_many_and_as_varied_as_promised() -> None:
    assert len({template.name for template in TEMPLATES}) == len(TEMPLATES) >= 24
    assert len({template.narrow for template in TEMPLATES}) == 13
    assert {template.broad for template in TEMPLATES} == {"Microscopy", "Diagnosis", "Clinical"}
    wordings = [words for template in TEMPLATES for words in template.paraphrases]
    assert len(set(wordings)) == len(wordings)
    for template in TEMPLATES:
        assert len(template.paraphrases) >= 4
        assert 2 <= len(set(template.options)) == len(template.options) <= 4


def test_the_page_states_every_rule() -> None:
    page = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    missing = [template.name for template in TEMPLATES if f"`{template.name}`" not in page]
    missing += [template.narrow for template in TEMPLATES if f"| {template.narrow} |" not in page]
    assert not missing
    assert f"{len(TEMPLATES)} templates" in page


def test_the_wording_of_the_test_split_is_never_seen_before() -> None:
    seen: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for row in ROWS:
        seen[row["split"] == "test"].add((row["template"], row["Question"]))
    assert not seen[True] & seen[False]
    assert len(seen[True]) == len(TEMPLATES)
    assert len(seen[False]) == 3 * len(TEMPLATES)


def test_a_letter_says_nothing() -> None:
    """Within a split and template, and within each of its answers, letters occur equally often, to one question."""
    by_template: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in ROWS:
        options = [letter for letter in "ABCD" if row[letter]]
        assert options == list("ABCD"[: len(options)])
        for key in ((row["split"], row["template"]), (row["split"], row["template"], row[row["Answer"]])):
            by_template[*key, str(len(options))].append(row["Answer"])
    for key, letters in by_template.items():
        counts = Counter(letters)
        every = [counts[letter] for letter in "ABCD"[: int(key[-1])]]
        assert max(every) - min(every) <= 1, key


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_always_one_letter_scores_chance(split: str) -> None:
    rows = [row for row in ROWS if row["split"] == split]
    chance = sum(1 / sum(1 for letter in "ABCD" if row[letter]) for row in rows)
    for letter in "AB":  # C and D are no option of a yes/no question
        right = sum(row["Answer"] == letter for row in rows)
        # Each template is off by less than one question, so the sum is off by less than the templates.
        assert abs(right - chance) < len(TEMPLATES) / 2, (letter, right, chance)


def test_the_form_is_the_same_whatever_the_answer() -> None:
    options = {template.name: sorted(template.options) for template in TEMPLATES}
    for row in ROWS:
        assert sorted(row[letter] for letter in "ABCD" if row[letter]) == options[row["template"]]
    # Where the wrong options stand does not follow their usual order: every order occurs.
    orders = {tuple(row[letter] for letter in "ABCD") for row in ROWS if row["template"] == "grade"}
    assert len(orders) == 24


def test_files_are_what_they_say(tmp_path: Path) -> None:
    hashes = write_texts(tmp_path, TRUTHS, seed=7)
    assert hashes == {name: commit.file_sha256(tmp_path / name) for name in hashes}
    assert all(commit.is_done(tmp_path / name) for name in hashes)
    with open(tmp_path / "reports.csv", encoding="utf-8", newline="") as file:
        reports = {row["slide_id"]: row["text"] for row in csv.DictReader(file)}
    assert list(reports) == [t.slide_id for t in TRUTHS]
    questions = read_slidebench(tmp_path / "questions.csv")
    assert [(q.id, q.slide, q.question, q.answer) for q in questions.questions] == [
        (row["ID"], row["Slide"], row["Question"], row["Answer"]) for row in ROWS
    ]
    assert {q.extra["split"] for q in questions.questions} == {"train", "val", "test"}
    captions = read_slideinstruct(tmp_path / "captions.json").dialogues
    assert {d.slide: d.turns[0][1] for d in captions} == {t.slide_id: reports[t.slide_id] for t in TRUTHS[:150]}
    dialogues = {d.id: d for d in read_slideinstruct(tmp_path / "questions.json").dialogues}
    train = [row for row in ROWS if row["split"] == "train"]
    assert list(dialogues) == [row["ID"] for row in train]
    ((asked, said),) = dialogues[train[0]["ID"]].turns
    row = train[0]
    assert asked.splitlines() == [row["Question"], *(f"{letter}. {row[letter]}" for letter in "ABCD" if row[letter])]
    assert said == f"{row['Answer']}. {row[row['Answer']]}"
    raw = json.loads((tmp_path / "questions.json").read_text(encoding="utf-8"))[0]
    assert raw["image"] == [f"{row['Slide']}.csv"]
    assert raw["conversations"][0]["value"].startswith("<image>\n")


def test_reports_differ_and_say_what_is_true(tmp_path: Path) -> None:
    write_texts(tmp_path, TRUTHS, seed=7)
    with open(tmp_path / "reports.csv", encoding="utf-8", newline="") as file:
        reports = {row["slide_id"]: row["text"] for row in csv.DictReader(file)}
    assert len(set(reports.values())) >= 0.9 * len(reports)
    for t in TRUTHS:
        text = reports[t.slide_id]
        assert (f"grade {t.grade}" in text.lower()) == bool(t.grade), text
        assert ("keratinising" in text) == (t.subtype == "b"), text
        assert ("metasta" in text.lower()) == (t.metastasis is not None), text
        fat = t.counts["fat"] / t.n_patches
        assert ("dipose tissue" in text) == (fat > 0), text
        if fat >= 0.01:
            assert f"{100 * fat:.0f} %" in text, text


def test_the_same_in_any_order_and_another_with_another_seed(tmp_path: Path) -> None:
    one = write_texts(tmp_path / "one", TRUTHS[:60], seed=7)
    assert write_texts(tmp_path / "two", TRUTHS[59::-1], seed=7) == one
    other = write_texts(tmp_path / "three", TRUTHS[:60], seed=8)
    assert all(other[name] != one[name] for name in one)


def test_guessing_is_described() -> None:
    described = {(entry["split"], entry["template"]): entry for entry in describe_questions(ROWS)}
    entry = described["test", "tumour_present"]
    assert (entry["n"], entry["options"], entry["majority_answer"]) == (100, 2, "yes")
    assert entry["majority_answer_share"] == 0.8
    assert entry["majority_letter_share"] == 0.5
    tied = sum(expected(t)["stroma_or_muscle"] is None for t in TRUTHS if t.split == "test")
    assert described["test", "stroma_or_muscle"]["n"] == 100 - tied
    assert len(described) == 3 * len(TEMPLATES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_patches": 299}, "slide 's0001': counts add up to 300, n_patches is 299"),
        ({"grade": 0, "subtype": ""}, "subtype '', grade 0, but counts has"),
        ({"subtype": "c"}, "subtype is 'c'; expected one of"),
        ({"split": "tset"}, "split is 'tset'; expected one of"),
        ({"til_pattern": "outside"}, "til_pattern is 'outside'"),
        ({"deposit_patches": 0}, "deposit_patches is 0 of"),
        ({"counts": {"bone": 300}}, "unknown classes"),
    ],
)
def test_a_truth_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(truth(1), **change)


def test_two_truths_of_one_slide_are_refused() -> None:
    with pytest.raises(InputError, match="slide_id 's0001' is duplicated"):
        make_questions([truth(1), truth(1)], seed=0)


def test_rows_have_the_published_columns() -> None:
    row: Row = ROWS[0]
    published = ["ID", "Slide", "Tumor", "Broad Category", "Narrow Category", "Question", "A", "B", "C", "D", "Answer"]
    assert list(row)[: len(published)] == published
