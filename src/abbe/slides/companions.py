"""Slides that consist of several files: DICOM series, and MIRAX and Hamamatsu slides."""

from __future__ import annotations

import warnings
from pathlib import Path

_SERIES_UID = 0x0020000E
_INI_LIMIT = 1 << 20  # bytes read of a .vms or .vmu file; the text has a few kB


def series_uid(path: Path) -> str | None:
    """SeriesInstanceUID of a DICOM file, read from its header in pure Python; None if there is none."""
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
            from pydicom.filereader import read_partial

            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # values that violate the standard are for OpenSlide to judge
                header = read_partial(
                    file, stop_when=lambda tag, *_: tag > _SERIES_UID, specific_tags=[_SERIES_UID], force=False
                )
                return str(header.get("SeriesInstanceUID") or "") or None
    except Exception:  # noqa: BLE001  pydicom raises anything for a damaged header; the slide then fails when opened
        return None


def dicom_series(folder: Path) -> dict[str, list[Path]]:
    """SeriesInstanceUID → its sorted files, of the DICOM files directly in a folder, whatever their suffix.

    OpenSlide reads the files of one series as one slide. Empty for a folder that cannot be listed.
    """
    series: dict[str, list[Path]] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return series
    for path in paths:
        uid = series_uid(path) if path.is_file() else None
        if uid is not None:
            series.setdefault(uid, []).append(path)
    return series


def companions(path: Path) -> list[Path]:
    """Further files of a slide that is not DICOM: the folder of an .mrxs, the images named in a .vms or .vmu."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        return sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())
    if suffix not in (".vms", ".vmu"):
        return []
    try:
        with open(path, "rb") as file:
            lines = file.read(_INI_LIMIT).decode("utf-8", "replace").splitlines()
    except OSError:  # the slide fails with this error when it is opened
        return []
    values = {line.partition("=")[2].strip() for line in lines}
    named = (path.parent / value for value in values if value and Path(value).name == value)
    return sorted(file for file in named if file.is_file())
