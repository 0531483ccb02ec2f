"""Inspect a slide: its geometry, its patches, and whether it can be encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from abbe.errors import SlideError
from abbe.inspection.finding import Finding, InspectSettings, signed
from abbe.slides.find import FoundSlide
from abbe.slides.slide import read_slide
from abbe.store.commit import printable

_HIDDEN = "never read: {}"


def whole(found: FoundSlide) -> Callable[[Path, InspectSettings], Finding]:
    """Inspector for a slide of one or several files; a slide of several is reported under its folder."""

    def look(path: Path, run: InspectSettings) -> Finding:
        finding = slide(found.path, run)
        if len(found.files) == 1:
            return finding
        several = {"files": len(found.files), "slide": found.slide_id}
        return replace(finding, path=printable(found.path.parent), facts=several | finding.facts)

    return look


def not_a_slide(reason: str) -> Callable[[Path, InspectSettings], Finding]:
    """Inspector for a file that has the suffix of a slide but is not one."""
    return lambda path, run: Finding(
        printable(path), "not a slide", {}, [f"{reason}; `abbe encode` skips it"], readable=False
    )


def part(path: Path, run: InspectSettings) -> Finding:
    """Marker for files that belong to another slide; never called."""
    raise AssertionError(path)


def slide(path: Path, run: InspectSettings) -> Finding:
    """Open and describe a slide, and count its patches without encoding them."""
    facts: dict[str, Any] = {}
    problems: list[str] = []
    readable = True
    try:
        facts |= _about(path)
        planned, warnings = _plan(path, run)
        facts |= planned
        problems += warnings
    except SlideError as error:
        readable = False
        problems.append(f"{error.stage}: {error.reason}")
    kind = "slide" if facts else "unreadable slide"
    if path.is_file():
        whole, said = signed(path)
        facts |= whole
        problems += said
    return Finding(printable(path), kind, facts, problems, readable=readable)


def _about(path: Path) -> dict[str, Any]:
    with read_slide("describe", path) as frames:
        header = next(frames).header
    levels = ", ".join(f"{width} × {height}" for width, height in header["levels"])
    images = ", ".join(header["images"])
    return {
        "format": header["vendor"],
        "size, level-0 pixels": header["levels"][0],
        "levels": f"{len(header['levels'])}: {levels}",
        "mpp at level 0": header["mpp_x"] if header["mpp_x"] == header["mpp_y"] else [header["mpp_x"], header["mpp_y"]],
        "objective": header["objective"],
        "label and other images": _HIDDEN.format(images) if images else "none",
    }


def _plan(path: Path, run: InspectSettings) -> tuple[dict[str, Any], list[str]]:
    """(patches that `abbe encode` would create, warnings). Raises SlideError if it would refuse the slide."""
    settings: dict[str, Any] = {
        "target_mpp": run.mpp,
        "patch_size": run.patch_size,
        "overlap": 0,
        "override_mpp": run.override_mpp,
        "batch": 1,
    }
    with read_slide("tiles", path, **settings) as frames:
        plan = next(frames).header  # leaving the context stops the reader process before it reads patches
    asked = f"patches of {run.patch_size} at {run.mpp:g} µm per pixel"
    if plan["kind"] == "empty":
        return {asked: 0}, [plan["reason"], *plan["warnings"]]
    facts = {asked: plan["patches"], "patch size, level-0 pixels": plan["patch_size_level0"]}
    return facts, list(plan["warnings"])
