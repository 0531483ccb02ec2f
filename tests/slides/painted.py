"""Slides painted for these tests, and where their outputs lie."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import tifffile

JOB = "20x_256px_0px_overlap"


def paint(path: Path, *, seed: int = 0, blank: bool = False, height: int = 560) -> Path:
    """A tiled TIFF of 600 × 560 pixels at 0.5 µm per pixel, its left half stained: two patches of 256 pixels."""
    pixels = np.full((height, 600, 3), 245, np.uint8)
    if not blank:
        noise = np.random.default_rng(seed).integers(0, 25, (height, 300, 1), dtype=np.uint8)
        pixels[:, :300] = np.array([200, 100, 150], np.uint8) + noise
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path, pixels, tile=(128, 128), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    return path


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "outcomes.csv", newline="") as file:
        return list(csv.DictReader(file))


def features_of(out: Path, slide_id: str, job: str = JOB) -> Path:
    return out / job / "features_texture" / f"{slide_id}.h5"


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every feature and patches file: both stay when nothing is written again."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(out.rglob("*.h5"))}
