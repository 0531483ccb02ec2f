"""Compare methods on the same test slides over several seeds: metrics and paired differences."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from sklearn.metrics import roc_auc_score

from abbe.console import progress
from abbe.evaluate.protocols.holdout import train_classifier
from abbe.evaluate.settings import HoldoutSettings
from abbe.metrics.bootstrap import Interval, Statistic, patient_bootstrap, seeds_and_patients_bootstrap
from abbe.metrics.predictions import read_predictions, statistic
from abbe.models.config import Pooling


@dataclass(frozen=True)
class Contender:
    """One row of a comparison: a condenser, its token budget and its pooling."""

    condenser: str
    tokens: int | float = 32
    pooling: Pooling = "attention"
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For example `tcssa-32-attention`."""
        return "-".join([self.condenser, f"{self.tokens:g}", self.pooling, *self.options])

    def settings(self, base: HoldoutSettings, seed: int) -> HoldoutSettings:
        """Settings of one run: the model of this row; everything else is taken from `base`."""
        return replace(
            base,
            condenser=self.condenser,
            tokens=self.tokens,
            condenser_options=self.options,
            pooling=self.pooling,
            recipe=replace(base.recipe, seed=seed),
        )


def train_all(
    contenders: Sequence[Contender],
    base: HoldoutSettings,
    out: Path,
    *,
    seeds: Sequence[int],
    workers: int | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Train every contender with every seed, each in its own folder under `out`. Returns {name: one result per seed}.

    base: the cohort, the recipe and all other shared settings.
    Each core trains one run, because two runs on two cores are faster than one run on both. Finished runs are not
    repeated.
    """
    workers = min(workers or os.cpu_count() or 1, len(contenders) * len(seeds))
    threads = max(1, torch.get_num_threads() // workers)  # all workers together use no more threads than this process
    runs = [(contender, seed) for seed in seeds for contender in contenders]
    jobs = (
        delayed(_train_one)(contender.settings(base, seed), out / contender.name / f"seed{seed}", threads)
        for contender, seed in runs
    )
    reports: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    with progress("training", len(runs)) as bar, warnings.catch_warnings():
        # joblib warns when it replaces a worker whose memory has grown; no result is lost.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")
        results = Parallel(n_jobs=workers, return_as="generator")(jobs)
        for (contender, _), report in zip(runs, results, strict=True):
            reports[contender.name].append(report)
            bar.advance(bar.task_ids[0])
    return reports


def _train_one(run: HoldoutSettings, folder: Path, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    return train_classifier(run, folder, quiet=True)


def predictions_on_test(out: Path, name: str, seeds: Sequence[int]) -> list[pd.DataFrame]:
    """The test predictions of one contender, one table per seed."""
    tables = [read_predictions(out / name / f"seed{seed}" / "predictions.parquet") for seed in seeds]
    return [table[table["split"] == "test"].reset_index(drop=True) for table in tables]


def over_seeds(tables: Sequence[pd.DataFrame], metric: str, *, draws: int = 1000) -> Interval:
    """Mean of a metric over seeds, on the same slides; the interval resamples patients and seeds."""
    cases = tables[0]["case_id"].astype(str).tolist()
    return seeds_and_patients_bootstrap(cases, [statistic(table, metric) for table in tables], draws=draws)


def paired_difference(
    first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], metric: str, *, draws: int = 1000
) -> Interval:
    """Mean of (first − second) over seeds, on the same slides; the interval resamples patients and seeds together."""
    cases = first[0]["case_id"].astype(str).tolist()
    if any(list(table["slide_id"]) != list(first[0]["slide_id"]) for table in (*first, *second)):
        raise ValueError("paired_difference: the tables contain different slides")

    def difference(one: pd.DataFrame, other: pd.DataFrame) -> Statistic:
        a, b = statistic(one, metric), statistic(other, metric)

        def value(rows: np.ndarray) -> float:
            return a(rows) - b(rows)

        return value

    pairs = [difference(one, other) for one, other in zip(first, second, strict=True)]
    return seeds_and_patients_bootstrap(cases, pairs, draws=draws)


def scored(labels: np.ndarray, scores: np.ndarray, cases: Sequence[str], *, draws: int = 1000) -> Interval:
    """AUROC of scores [n] for labels [n] (0 or 1); the interval resamples patients."""

    def value(rows: np.ndarray) -> float:
        known = labels[rows]
        return float(roc_auc_score(known, scores[rows])) if known.min() < known.max() else float("nan")

    return patient_bootstrap(list(cases), value, draws=draws)
