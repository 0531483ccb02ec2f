"""Intervals that resample patients with all their slides, since slides of one patient are not independent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % percentile interval, and the numbers of slides `n` and of patients.

    resamples: bootstrap samples in which the metric is defined (all classes present), out of `drawn`.
    """

    value: float
    low: float
    high: float
    n: int
    patients: int
    resamples: int
    drawn: int

    def __str__(self) -> str:
        return shown(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        return {key: None if value != value else value for key, value in asdict(self).items()}  # NaN is not JSON


def shown(value: Mapping[str, Any] | None) -> str:
    """A metric and its interval, {"value", "low", "high"}, as text: "0.912 [0.876, 0.945]"."""
    if value is None:
        return "–"
    if value["value"] is None:
        return "not defined (a class is missing)"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def patient_rows(cases: Sequence[str]) -> list[np.ndarray]:
    """Row numbers of each patient, patients in sorted order."""
    names, inverse = np.unique(np.asarray(cases, dtype=object).astype(str), return_inverse=True)
    return [np.flatnonzero(inverse == k) for k in range(len(names))]


def resample_patients(cases: Sequence[str], draws: int, seed: int) -> list[np.ndarray]:
    """Row numbers of `draws` bootstrap samples: patients drawn with replacement, each with all its slides."""
    rows = patient_rows(cases)
    rng = np.random.default_rng(seed)
    return [np.concatenate([rows[k] for k in rng.integers(len(rows), size=len(rows))]) for _ in range(draws)]


def patient_bootstrap(cases: Sequence[str], statistic: Statistic, *, draws: int = 1000, seed: int = 0) -> Interval:
    """95 % percentile interval of `statistic(rows)` over resampled patients (Efron & Tibshirani 1993, ch. 13).

    statistic: row numbers → metric, NaN where it is not defined; such samples are left out and counted.
    """
    values = np.array([statistic(rows) for rows in resample_patients(cases, draws, seed)])
    return interval(statistic(np.arange(len(cases))), values, cases)


def seeds_and_patients_bootstrap(
    cases: Sequence[str], statistics: Sequence[Statistic], *, draws: int = 1000, seed: int = 0
) -> Interval:
    """The mean of a metric over training seeds on the same slides; both seeds and patients are resampled.

    statistics: one per seed.
    """
    rng = np.random.default_rng([seed, 1])
    values = []
    for rows in resample_patients(cases, draws, seed):
        drawn = rng.integers(len(statistics), size=len(statistics))
        values.append(np.mean([statistics[k](rows) for k in drawn]))
    everything = np.arange(len(cases))
    return interval(float(np.mean([statistic(everything) for statistic in statistics])), np.array(values), cases)


def nested_bootstrap(
    samples: Sequence[tuple[Sequence[str], Statistic]], *, draws: int = 1000, seed: int = 0
) -> Interval:
    """The mean of a metric over repetitions with slides of their own; repetitions and their patients are resampled.

    samples: (patient of every slide, statistic) of each repetition, such as one bank split with its training seed.
    """
    rng = np.random.default_rng(seed)
    patients = [patient_rows(cases) for cases, _ in samples]
    values = []
    for _ in range(draws):
        means = []
        for k in rng.integers(len(samples), size=len(samples)):
            rows = patients[k]
            means.append(samples[k][1](np.concatenate([rows[j] for j in rng.integers(len(rows), size=len(rows))])))
        values.append(np.mean(means))
    # Patients of different repetitions are different, even if their names are equal.
    cases = [f"{number}/{case}" for number, (names, _) in enumerate(samples) for case in names]
    value = np.mean([statistic(np.arange(len(names))) for names, statistic in samples])
    return interval(float(value), np.array(values), cases)


def interval(value: float, resampled: np.ndarray, cases: Sequence[str]) -> Interval:
    """Percentile interval of the resampled values that are finite; `Interval.resamples` counts them."""
    valid = resampled[np.isfinite(resampled)]
    low, high = np.percentile(valid, [2.5, 97.5]) if len(valid) else (float("nan"), float("nan"))
    return Interval(float(value), float(low), float(high), len(cases), len(set(cases)), len(valid), len(resampled))
