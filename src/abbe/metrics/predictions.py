"""Tables of predictions, and their metrics with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from abbe.errors import TableError
from abbe.metrics.bootstrap import Interval, Statistic, patient_bootstrap
from abbe.metrics.classification import METRICS
from abbe.store.commit import commit

_NEEDED = ("slide_id", "case_id", "split", "label")


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Commit a predictions table (see `abbe.evaluate.predict`) as parquet."""
    with commit(path, format="predictions", version=1) as temporary:
        table.to_parquet(temporary, index=False)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """A predictions table. Raises TableError if it cannot be read, or names the missing column."""
    path = Path(path)
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read as a parquet table ({error})") from error
    for column in _NEEDED:
        if column not in table:
            raise TableError(
                f"{path}: no column {column!r}; expected {', '.join(_NEEDED)} and p_<class> for each class"
            )
    if len(class_names(table)) < 2:
        raise TableError(f"{path}: expected columns p_<class> of at least two classes, found {class_names(table)}")
    return table


def class_names(table: pd.DataFrame) -> list[str]:
    """The classes of a predictions table, in the order of its columns."""
    return [str(column)[2:] for column in table if str(column).startswith("p_")]


def arrays(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(labels [n] int, probabilities [n, C]) of a predictions table."""
    classes = class_names(table)
    labels = np.array([classes.index(str(label)) for label in table["label"]])
    return labels, table[[f"p_{name}" for name in classes]].to_numpy(float)


def all_metrics(table: pd.DataFrame, *, draws: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Every classification metric with its 95 % interval; patients are resampled."""
    cases = table["case_id"].astype(str).tolist()
    return {name: patient_bootstrap(cases, statistic(table, name), draws=draws, seed=seed) for name in METRICS}


def statistic(table: pd.DataFrame, metric: str) -> Statistic:
    """A metric as a function of the table's row numbers, for a bootstrap."""
    labels, probabilities = arrays(table)

    def value(rows: np.ndarray) -> float:
        return METRICS[metric](labels[rows], probabilities[rows])

    return value


def summary(intervals: dict[str, Interval]) -> dict[str, Any]:
    """The intervals as plain JSON values."""
    return {name: value.as_dict() for name, value in intervals.items()}
