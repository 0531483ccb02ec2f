"""Which slides a command line means: odd names, odd things in folders, DICOM series. Nothing is dropped uncounted."""

import os
import struct
from pathlib import Path

import pytest

from abbe import cli
from abbe.errors import InputError
from abbe.slides.encode import encode_slides
from abbe.slides.find import find_slides
from abbe.store.bags import read_bag
from slides.painted import features_of, paint, rows


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def ids(*paths: Path) -> list[str]:
    return [slide.slide_id for slide in find_slides(paths)]


def dicom(path: Path, uid: str, *, nested: str | None = None) -> Path:
    """The header of a DICOM file of that series, written by hand; `nested`: a series it only refers to, before."""

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        length = struct.pack("<HI", 0, len(value)) if kind in (b"SQ", b"OB") else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + kind + length + value

    def series(value: str) -> bytes:
        return element(0x20, 0x0E, b"UI", value.encode())

    syntax = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
    meta = element(2, 0, b"UL", struct.pack("<I", len(syntax))) + syntax
    item = b"" if nested is None else b"\xfe\xff\x00\xe0" + struct.pack("<I", len(series(nested))) + series(nested)
    referred = element(8, 0x1115, b"SQ", item) if item else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + meta + referred + series(uid))
    return path


def test_folders_are_searched(tmp_path):
    touch(*(tmp_path / name for name in ("b.svs", "a.TIFF", "in/c.ndpi", "in/notes.txt", "._b.svs", ".trash/d.svs")))
    touch(tmp_path / "far" / "away" / "x.svs", tmp_path / "named.svs" / "inside.tiff")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    assert ids(tmp_path) == ["a", "b", "x", "c", "inside"]
    assert ids(tmp_path / "b.svs", tmp_path)[0] == "b"
    assert len(ids(tmp_path / "b.svs", tmp_path)) == 5


def test_slides_of_one_stem_are_named_by_their_path(tmp_path):
    touch(*(tmp_path / name for name in ("a/x.svs", "b/x.svs", "b/x.tiff", "b/y.svs")))
    assert ids(tmp_path) == ["a__x.svs", "b__x.svs", "b__x.tiff", "y"]
    assert ids(tmp_path / "a/x.svs", tmp_path / "b/x.svs") == ["a__x.svs", "b__x.svs"]
    assert ids(tmp_path / "a", tmp_path / "b/x.svs") == ["a__x.svs", "b__x.svs"]
    assert ids(tmp_path / "b/y.svs", tmp_path / "b" / ".." / "b" / "y.svs") == ["y"]


def test_two_slides_of_one_stem_are_two_outcomes(tmp_path):
    paint(tmp_path / "in" / "a" / "s.tiff")
    paint(tmp_path / "in" / "b" / "s.tiff", height=820)
    outcomes = encode_slides([tmp_path / "in"], tmp_path / "out")
    assert [(o.slide_id, o.patches) for o in outcomes] == [("a__s.tiff", 2), ("b__s.tiff", 3)]
    for outcome in outcomes:
        assert len(read_bag(features_of(tmp_path / "out", outcome.slide_id)).features) == outcome.patches


def odd_things(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "fifo.svs")  # opening it would wait for ever
    (folder / "loop.svs").symlink_to(folder / "loop.svs")
    (folder / "dangling.svs").symlink_to(folder / "gone.svs")
    (folder / "empty.svs").mkdir()
    (folder / "long.svs").symlink_to("n" * 300)
    (folder / "locked.svs").symlink_to("/proc/self/mem")  # a regular file that root too cannot read
    (folder / "up").symlink_to(folder.parent)
    (folder / "nothing.svs").touch()


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [False, True])
def test_what_is_no_regular_file_is_a_row_and_does_not_hang(tmp_path, by_hand, capsys):
    folder = tmp_path / "slides"
    odd_things(folder)
    good = paint(folder / "good.tiff")
    names = ("good.tiff", "fifo.svs", "loop.svs", "dangling.svs", "long.svs", "locked.svs", "nothing.svs")
    slides = [str(folder / name) for name in names] if by_hand else [str(folder)]
    assert cli.run(["encode", *slides, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    found = {row["slide_id"]: row for row in rows(tmp_path / "out")}
    assert (found["good"]["outcome"], found["good"]["patches"]) == ("done", "2")
    odd = ("failed" if by_hand else "skipped", "find")
    for name, why in (
        ("fifo", "a pipe"),
        ("loop", "a link to a path that does not exist"),
        ("dangling", "gone.svs"),
        ("long", "too long"),
    ):
        assert (found[name]["outcome"], found[name]["stage"]) == odd
        assert why in found[name]["reason"]
        assert f"{name}.svs: {odd[0]} at find" in said
    for name in ("locked", "nothing"):
        assert (found[name]["outcome"], found[name]["stage"]) == ("failed", "open")
    assert ("empty" in found) == (not by_hand)
    assert by_hand or "contains no further slides" in found["empty"]["reason"]
    assert good.exists()


def test_what_is_skipped_alone_is_no_failure(tmp_path, capsys):
    (tmp_path / "in" / "s.svs").mkdir(parents=True)
    paint(tmp_path / "in" / "good.tiff")
    assert cli.run(["encode", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert "1 done, 1 skipped" in capsys.readouterr().out


def test_a_folder_without_slides_is_refused_beside_others_too(tmp_path):
    (tmp_path / "folder.svs").mkdir()
    slide = paint(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"folder\.svs: no slides found"):
        find_slides([slide, tmp_path / "folder.svs"])
    with pytest.raises(InputError, match=r"gone\.svs: no such slide"):
        find_slides([slide, tmp_path / "gone.svs"])
    with pytest.raises(InputError, match=r"nn\.svs: cannot be accessed \(File name too long\)"):
        find_slides([tmp_path / ("n" * 300 + ".svs")])


ODD_NAMES = [
    "a [x].tiff", "a,b\n'c'.tiff", "präparat 病理.tiff", os.fsdecode(b"caf\xe9.tiff"), "x.ome.tif", "-out.tiff",
    "--help.tiff", "tab\tand space.tiff", "%s.tiff",
]  # fmt: skip


@pytest.mark.slow
def test_odd_names(tmp_path):
    plain = paint(tmp_path / "plain.tiff")
    (tmp_path / "in").mkdir()
    for name in ODD_NAMES:
        (tmp_path / "in" / name).write_bytes(plain.read_bytes())
    outcomes = encode_slides([tmp_path / "in"], tmp_path / "out")
    assert len(outcomes) == len(ODD_NAMES)
    for outcome, row in zip(outcomes, rows(tmp_path / "out"), strict=True):
        assert outcome.outcome == "done", outcome.reason
        assert row["slide_id"] == outcome.slide_id
        assert read_bag(features_of(tmp_path / "out", outcome.slide_id)).slide_id == outcome.slide_id


@pytest.mark.parametrize("words", [["./-x.tiff"], ["--", "-x.tiff"]])
def test_a_leading_dash_on_the_command_line(tmp_path, monkeypatch, words, capsys):
    paint(tmp_path / "-x.tiff")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["encode", "--out", "out", *words]) == 0
    assert [row["slide_id"] for row in rows(tmp_path / "out")] == ["-x"]


def test_a_name_too_long_for_the_disk_is_a_row(tmp_path):
    path = paint(tmp_path / "short.tiff").rename(tmp_path / ("n" * 250 + ".tif"))
    (outcome,) = encode_slides([path], tmp_path / "out")
    assert outcome.outcome == "failed"
    assert "File name too long" in outcome.reason


def test_an_out_folder_whose_name_is_no_utf_8(tmp_path, capsys):
    path, out = paint(tmp_path / "a.tiff"), tmp_path / os.fsdecode(b"caf\xe9")
    assert cli.run(["encode", str(path), "--out", str(out)]) == 0
    capsys.readouterr().out.encode()
    assert cli.run(["encode", str(path), "--out", str(out), "--override-mpp=0.51"]) == 1  # refused, by name
    assert r"caf\xe9" in capsys.readouterr().out


# DICOM series.


def test_the_files_of_a_series_are_one_slide_named_after_the_folder(tmp_path):
    files = [dicom(tmp_path / "case 1.a" / f"level-{n}.dcm", "1.2.3", nested="9.9") for n in (0, 1, 10)]
    dicom(tmp_path / "case 1.a" / "without-suffix", "1.2.3")
    touch(tmp_path / "case 1.a" / "b.svs")
    series, other = sorted(find_slides([tmp_path]), key=lambda slide: len(slide.files), reverse=True)
    assert (series.slide_id, series.path) == ("case 1.a", files[0])
    assert [path.name for path in series.files] == ["level-0.dcm", "level-1.dcm", "level-10.dcm", "without-suffix"]
    assert other.slide_id == "b"
    assert ids(tmp_path / "case 1.a" / "b.svs", tmp_path / "case 1.a") == ["b", "case 1.a"]
    for given in (files, files[2:], [*files[1:], tmp_path / "case 1.a" / "without-suffix"]):
        (by_hand,) = find_slides(given)
        assert (by_hand.slide_id, by_hand.files) == ("case 1.a", series.files)


def test_a_folder_of_several_series_has_one_slide_each(tmp_path):
    for name, uid in (("a0", "1.2"), ("b0", "1.3"), ("a1", "1.2"), ("b1", "1.3"), ("alone", "1.4")):
        dicom(tmp_path / "case" / f"{name}.dcm", uid)
    assert ids(tmp_path) == ["case_1.2", "alone", "case_1.3"]
    assert ids(tmp_path / "case" / "b1.dcm") == ["case_1.3"]
    for name in ("x", "y"):
        for number in (0, 1):
            dicom(tmp_path / name / "scan" / f"{number}.dcm", "2.1")
    assert ids(tmp_path / "x", tmp_path / "y") == ["x__scan", "y__scan"]
    assert ids(tmp_path / "x/scan", tmp_path / "y/scan") == ["x__scan", "y__scan"]
    assert [name for name in ids(tmp_path) if "scan" in name] == ["x__scan", "y__scan"]


def test_damaged_dicom_headers_are_slides_of_their_own(tmp_path):
    whole = dicom(tmp_path / "whole.dcm", "1.2.3").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-6])
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    noise = bytes((7 * n) % 256 for n in range(500))
    (tmp_path / "noise.dcm").write_bytes(whole[:132] + noise)
    assert sorted(ids(tmp_path)) == ["cut", "noise", "text", "whole"]


def test_companions_belong_to_the_slide(tmp_path):
    touch(tmp_path / "m.mrxs", tmp_path / "m" / "Data0000.dat", tmp_path / "m" / "Slidedat.ini", tmp_path / "p.jpg")
    (tmp_path / "v.vms").write_text("[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=p.jpg\nMapFile=../no.jpg\n")
    found = {slide.slide_id: [path.name for path in slide.files] for slide in find_slides([tmp_path])}
    assert found == {"m": ["m.mrxs", "Data0000.dat", "Slidedat.ini"], "v": ["v.vms", "p.jpg"]}
