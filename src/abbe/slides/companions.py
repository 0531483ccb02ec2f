"""Slides of several files: the DICOM files of one series, MIRAX and Hamamatsu slides with their data beside them."""

from __future__ import annotations

import warnings
from pathlib import Path

_SERIES_UID = 0x0020000E
_INI_LIMIT = 1 << 20  # bytes read of a .vms or .vmu, which is a text of a few kB


def series_uid(path: Path) -> str | None:
    """SeriesInstanceUID of a DICOM file, from its header; None where it is no DICOM file or has none.

    Read in Python, in this process: no decoder that a damaged file could crash comes near it.
    """
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
            from pydicom.filereader import read_partial

            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a value that breaks a rule of the standard is OpenSlide's to judge
                header = read_partial(
                    file, stop_when=lambda tag, *_: tag > _SERIES_UID, specific_tags=[_SERIES_UID], force=False
                )
                return str(header.get("SeriesInstanceUID") or "") or None
    except Exception:  # noqa: BLE001  a damaged header raises whatever it likes; the slide then fails when it is opened
        return None


def dicom_series(folder: Path) -> dict[str, list[Path]]:
    """SeriesInstanceUID → its files, sorted, of all DICOM files right in a folder: what OpenSlide takes for one slide.

    Its files may have any suffix, as OpenSlide goes by what is in them. Empty for a folder that cannot be listed.
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
    """The other files of a slide that is no DICOM: the folder of an .mrxs, the pictures that a .vms or .vmu names."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        return sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())
    if suffix not in (".vms", ".vmu"):
        return []
    try:
        with open(path, "rb") as file:
            lines = file.read(_INI_LIMIT).decode("utf-8", "replace").splitlines()
    except OSError:  # the slide then fails when it is opened, and says so
        return []
    values = {line.partition("=")[2].strip() for line in lines}
    named = (path.parent / value for value in values if value and Path(value).name == value)
    return sorted(file for file in named if file.is_file())
