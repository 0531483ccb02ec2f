"""The files below a folder: order, hidden files, links, folders that count as one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from abbe.errors import InputError
from abbe.store.walk import files_below


def names(folder: Path, **options: object) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder, **options)]  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two files beside a folder with one; hidden ones, a sidecar and a link to a folder outside."""
    folder = tmp_path / "tree"
    for name in ("b.txt", "z.txt", "a/c.txt", ".hidden", "b.txt.sha256.json", ".cache/d.txt", "store.zarr/0/1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "e.txt").write_text("e")
    (folder / "link").symlink_to(tmp_path / "outside")
    return folder


def test_files_come_by_name_and_before_those_of_folders(tree):
    assert names(tree) == ["b.txt", "z.txt", "a/c.txt", "store.zarr/0/1"]


def test_hidden_files_and_sidecars_only_when_asked_for(tree):
    assert set(names(tree, hidden=True)) - set(names(tree)) == {".hidden", "b.txt.sha256.json", ".cache/d.txt"}


def test_folders_are_yielded_before_their_files_when_asked_for(tree):
    assert names(tree, folders=True) == [
        "a", "b.txt", "link", "store.zarr", "z.txt", "a/c.txt", "store.zarr/0", "store.zarr/0/1"
    ]  # fmt: skip


def test_a_folder_that_counts_as_one_file_is_not_searched(tree):
    assert names(tree, is_whole=lambda path: path.suffix == ".zarr") == ["b.txt", "store.zarr", "z.txt", "a/c.txt"]


@pytest.mark.parametrize(("links", "found"), [("skip", []), ("follow", ["link/e.txt"]), ("once", ["link/e.txt"])])
def test_links_to_folders(tree, links, found):
    assert [name for name in names(tree, links=links) if name.startswith("link")] == found


def test_a_folder_with_two_links_is_followed_twice_or_once(tree):
    (tree / "second").symlink_to(tree.parent / "outside")
    assert {"link/e.txt", "second/e.txt"} <= set(names(tree, links="follow"))
    assert [name for name in names(tree, links="once") if name.endswith("e.txt")] == ["link/e.txt"]


@pytest.mark.parametrize("links", ["skip", "follow", "once"])
def test_a_loop_of_links_ends(tree, links):
    (tree / "a" / "up").symlink_to(tree)
    (tree.parent / "outside" / "back").symlink_to(tree.parent / "outside")
    found = names(tree, links=links)
    assert len(found) == len(set(found))
    assert found.count("a/c.txt") == 1
    assert not any("up/" in name or "back/" in name for name in found)


def test_a_broken_link_and_a_link_to_a_file_are_files(tree):
    (tree / "broken").symlink_to(tree / "nothing")
    (tree / "y.txt").symlink_to(tree / "z.txt")
    assert {"broken", "y.txt"} <= set(names(tree))


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: cannot be searched"):
        list(files_below(tmp_path / "nowhere"))
