"""List the files below a folder; used wherever a folder is searched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from abbe.errors import InputError
from abbe.store.commit import SIDECAR

Links = Literal["skip", "follow", "once"]


def files_below(
    folder: Path,
    *,
    hidden: bool = False,
    links: Links = "skip",
    folders: bool = False,
    is_whole: Callable[[Path], bool] = lambda _: False,
) -> Iterator[Path]:
    """Yield all files below a folder, sorted by name; the files of a folder come before those of its subfolders.

    hidden: include hidden files and sidecars.
    links: what to do with links to folders. "skip" ignores them, "follow" follows them unless the target contains the
    link, "once" follows them but visits every folder only once, by the first path.
    folders: yield folders too.
    is_whole: whether a folder counts as one file (a .zarr store, a model); it is yielded but not searched.

    Raises InputError for a folder that cannot be read.
    """
    entered: set[tuple[int, int]] = set()
    stack: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while stack:
        place, above = stack.pop()
        try:
            status = place.stat()
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{place}: cannot be searched ({error.strerror})") from error
        identity = (status.st_dev, status.st_ino)
        if identity in (entered if links == "once" else above):  # a loop of links
            continue
        entered.add(identity)
        inside = []
        for entry in entries:
            path = place / entry.name
            if not hidden and (entry.name.startswith(".") or entry.name.endswith(SIDECAR)):
                continue
            whole = not _is_folder(entry) or is_whole(path)
            if whole or folders:
                yield path
            if not whole and (not entry.is_symlink() or _follows(path, links)):
                inside.append((path, above | {identity}))
        stack += reversed(inside)


def _follows(link: Path, links: Links) -> bool:
    return links == "once" or (links == "follow" and not link.parent.resolve().is_relative_to(link.resolve()))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link whose target name is too long
        return False
