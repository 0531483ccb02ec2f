"""The smallest share of evidence that each method still finds, and its distance to keeping every patch."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from abbe.bench.record import about, circumstances, table
from abbe.bench.settings import NeedleSettings
from abbe.condensers import condenser_class
from abbe.console import say
from abbe.errors import ConfigError
from abbe.evaluate.compare import Contender, over_seeds, paired_difference, predictions_on_test, scored, train_all
from abbe.evaluate.settings import HoldoutSettings
from abbe.metrics.bootstrap import shown
from abbe.phantom.bank import PatchBank, build_bank
from abbe.phantom.scores import ceiling_scores
from abbe.phantom.settings import PHANTOM_VERSION, CohortPlan
from abbe.phantom.writer import features_folder, write_cohort
from abbe.train.recipe import Recipe
from abbe.view.figure import Figure
from abbe.view.plots import evidence_curves

# Methods without a budget; every other method gets --tokens and attention pooling.
ENDS = {"none": Contender("none", 1.0, "attention"), "mean": Contender("mean", 1, "mean")}
UPPER = ENDS["none"]


def bench_needle(run: NeedleSettings) -> dict[str, Any]:
    """Everything the benchmark measures, as plain JSON values."""
    entered = contenders(run)
    rows = build_bank(run.bank, run.out / "bank", workers=run.workers)
    rates = _choose_rates(run, rows)
    curves: dict[str, list[dict[str, Any]]] = {c.name: [] for c in entered}
    curves |= {"ceiling": [], "oracle": []}
    differences: dict[str, list[dict[str, Any]]] = {c.name: [] for c in entered if UPPER in entered and c is not UPPER}
    difficulty: dict[str, Any] = {}
    for fraction in run.fractions:
        cohort, record = _cohort(run, rows, fraction)
        difficulty = record["difficulty"]
        reports = _train(run, cohort, rates)
        tables = {c.name: predictions_on_test(cohort / "runs", c.name, run.seeds) for c in entered}
        for name, reported in tables.items():
            point: dict[str, Any] = {"fraction": fraction}
            point |= {m: over_seeds(reported, m, draws=run.draws).as_dict() for m in ("auroc", "balanced_accuracy")}
            point["epochs"] = [r["epochs"] for r in reports[name]]
            curves[name].append(point)
        first = tables[entered[0].name][0]
        labels = (first["label"] == "b").to_numpy(int)
        cases = first["case_id"].tolist()
        seen = ceiling_scores(cohort, rows, first["slide_id"].tolist())
        curves["ceiling"].append(
            {"fraction": fraction, "auroc": scored(labels, seen, cases, draws=run.draws).as_dict()}
        )
        # The oracle reads the subtype from the truth map.
        oracle = scored(labels, labels.astype(float), cases, draws=run.draws).as_dict()
        curves["oracle"].append({"fraction": fraction, "auroc": oracle})
        for name, points in differences.items():
            gap = paired_difference(tables[name], tables[UPPER.name], "auroc", draws=run.draws)
            points.append({"fraction": fraction, "auroc": gap.as_dict()})
        say(f"needle {100 * fraction:g} %: done")
    for points in (*curves.values(), *differences.values()):
        points.sort(key=lambda point: float(point["fraction"]))
    return {
        "circumstances": circumstances("bench needle", NeedleSettings, run),
        "settings": {
            "seeds": list(run.seeds),
            "slides": list(run.slides),
            "patches": run.patches,
            "epochs": run.epochs,
            "bank_splits": 1,
            "learning_rates": rates,
            "rates_tried": len(run.rates),
            "phantom_version": PHANTOM_VERSION,
        },
        "difficulty": difficulty,
        "curves": curves,
        "minus_none": differences,
    }


def contenders(run: NeedleSettings) -> list[Contender]:
    """The methods to compare. Raises ConfigError for unknown and duplicate names."""
    if len(set(run.condensers)) != len(run.condensers) or not run.condensers:
        raise ConfigError(f"--condensers {' '.join(run.condensers)}: name at least one method, each once")
    return [contender for name in run.condensers for contender in _of_method(run, name)]


def _of_method(run: NeedleSettings, name: str) -> list[Contender]:
    """One contender; in a sweep, one for each combination of the method's grid."""
    grid = condenser_class(name).grid
    if name in ENDS or not (run.sweep and grid):
        return [ENDS.get(name, Contender(name, run.tokens, "attention"))]
    found = []
    for values in product(*grid.values()):
        options = dict(zip(grid, values, strict=True))
        tokens = options.pop("tokens", run.tokens)
        found.append(Contender(name, tokens, "attention", tuple(f"{key}={value}" for key, value in options.items())))
    return found


def _base(run: NeedleSettings, cohort: Path, rate: float) -> HoldoutSettings:
    """What all runs on a cohort have in common."""
    return HoldoutSettings(
        features=features_folder(cohort, run.bank.encoder),
        labels=cohort / "labels.csv",
        recipe=Recipe(epochs=run.epochs, lr=rate, plateau_patience=run.epochs, early_stop=run.epochs),
        draws=run.draws,
    )


def _cohort(run: NeedleSettings, rows: PatchBank, fraction: float) -> tuple[Path, dict[str, Any]]:
    folder = run.out / f"needle-{100 * fraction:g}"
    return folder, write_cohort(folder, CohortPlan(fraction, run.slides, run.patches), rows)


def _choose_rates(run: NeedleSettings, rows: PatchBank) -> dict[str, float]:
    if len(run.rates) == 1:
        return {c.name: run.rates[0] for c in contenders(run)}
    cohort, _ = _cohort(run, rows, run.tune_at)
    losses: dict[str, dict[float, float]] = {c.name: {} for c in contenders(run)}
    for rate in run.rates:
        reports = train_all(
            contenders(run),
            _base(run, cohort, rate),
            cohort / f"tune-{rate:g}",
            seeds=run.seeds[:1],
            workers=run.workers,
        )
        for name, (report,) in reports.items():
            losses[name][rate] = report["best_val_task"]
    return {name: min(tried, key=lambda rate: tried[rate]) for name, tried in losses.items()}


def _train(run: NeedleSettings, cohort: Path, rates: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
    reports: dict[str, list[dict[str, Any]]] = {}
    for rate in sorted(set(rates.values())):
        reports |= train_all(
            [c for c in contenders(run) if rates[c.name] == rate],
            _base(run, cohort, rate),
            cohort / "runs",
            seeds=run.seeds,
            workers=run.workers,
        )
    return reports


def curves_figure(found: dict[str, Any]) -> Figure:
    """AUROC of every method by the share of evidence."""
    lines = {
        name: [(point["fraction"], point["auroc"]) for point in points] for name, points in found["curves"].items()
    }
    return evidence_curves(lines, label="AUROC on held-out patients")


def markdown(found: dict[str, Any]) -> str:
    """The result as a page: AUROC by fraction and method, and the difference to keeping every patch."""
    settings, curves = found["settings"], found["curves"]
    fractions = [point["fraction"] for point in curves["oracle"]]
    rows = [[name, *(shown(point["auroc"]) for point in points)] for name, points in curves.items()]
    for name, points in found["minus_none"].items():
        rows.append([f"{name} − {UPPER.name}", *(shown(point["auroc"]) for point in points)])
    columns = ["AUROC [95 %]", *(f"{100 * fraction:g} %" for fraction in fractions)]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in settings["learning_rates"].items())
    chosen = ", chosen on validation slides" if settings["rates_tried"] > 1 else ""
    test = curves["oracle"][0]["auroc"]
    probe = found["difficulty"]
    return f"""# Needle: how small an evidence is still found

{about(found["circumstances"])}
{" / ".join(map(str, settings["slides"]))} slides train / val / test, about {settings["patches"]} patches each.
Phantoms are of version {settings["phantom_version"]}.
Test: {test["n"]} slides of {test["patients"]} patients; neither the patients nor their bank patches are in training.
Means over seeds {settings["seeds"]}; intervals resample patients and seeds ({test["drawn"]} samples), but not the split
of the bank, of which there is one. Learning rates{chosen}: {rates}. {settings["epochs"]} epochs at a constant rate;
the best epoch on validation slides is kept.

{table(columns, rows)}
Oracle: the subtype read from the truth map. Ceiling: patches classified as subtype b minus patches classified as a, by
a linear probe of single patches (balanced accuracy over 12 classes {probe["probe_all_classes"]:.3f}; a2 against b2
{probe["probe_a2_b2"]:.3f}, {probe["probe_a2_b2_patches"]["test"]} test patches). A method that weighs patches better
than by counting can exceed the ceiling.
"""
