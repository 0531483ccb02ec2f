"""How λ, the weight of TC-SSA's clustering loss, changes which slots the patches go to.

The claim to check: with a small λ one slot absorbs over 60 % of the patches; with a large λ slots collect artefacts and
dilute the signal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from abbe.bench.record import about, circumstances, table
from abbe.bench.settings import SlotsSettings
from abbe.console import progress, say
from abbe.data import SPLITS
from abbe.evaluate.compare import Contender, predictions_on_test, train_all
from abbe.evaluate.settings import HoldoutSettings
from abbe.metrics.bootstrap import Interval, Statistic, nested_bootstrap, shown
from abbe.metrics.predictions import statistic
from abbe.metrics.slots import ARTEFACT, EVIDENCE, OTHER, USAGE, SlotTable, joined, slide_slots
from abbe.models.condense import condense_slide
from abbe.models.hub import load
from abbe.phantom.artefacts import ArtefactRows, add_artefacts, encode_artefacts, read_normal_patches
from abbe.phantom.bank import PatchBank, build_bank, cell_patches
from abbe.phantom.mosaic import build_mosaic_bank
from abbe.phantom.render.tissue import TISSUE_CLASSES
from abbe.phantom.settings import PHANTOM_VERSION, SPLITS_OF_GROUPS, BankPlan, CohortPlan
from abbe.phantom.writer import features_folder, write_cohort
from abbe.store.bags import read_bag
from abbe.store.commit import file_sha256
from abbe.train.recipe import Recipe

_Variant = tuple[float, str]
_CLAIMED = 0.6
_ARTEFACTS = (4, 2, 3)  # artefacts rendered for train, val and test of each class, site and stain setting
_FROM_MOSAIC = 120  # real patches of each split that are turned into artefacts
_APART = 1_000_000  # offset of the bank splits of artefacts, so that they share no patch with those of tissue


@dataclass(frozen=True, eq=False)
class _Cohort:
    """The cohort of one seed. artefacts: columns slide_id, row.   evidence: class numbers of the evidence."""

    folder: Path
    features: Path
    artefacts: pd.DataFrame
    evidence: Sequence[int]


def bench_slots(run: SlotsSettings) -> dict[str, Any]:
    """Everything the study measures, as plain JSON values."""
    fillings: dict[str, Callable[[int], _Cohort]] = {"phantom": lambda seed: _phantom(run, seed)}
    if run.mosaic:
        fillings["mosaic"] = lambda seed: _mosaic(run, seed)
    found: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    for name, fill in fillings.items():
        tables: dict[_Variant, list[pd.DataFrame]] = {variant: [] for variant in _variants(run)}
        usage: dict[_Variant, list[SlotTable]] = {variant: [] for variant in _variants(run)}
        for seed in run.seeds:
            cohort = fill(seed)
            hashes[f"{name}-{seed}"] = file_sha256(cohort.folder / "labels.csv")
            _train(run, cohort, seed)
            for variant in _variants(run):
                contender = _contender(run, variant)
                tables[variant] += predictions_on_test(_runs(run, cohort), contender.name, (seed,))
                model = _runs(run, cohort) / contender.name / f"seed{seed}" / "model"
                usage[variant].append(_usage(run, model, cohort, tables[variant][-1]["slide_id"].tolist()))
            say(f"{name}, seed {seed}: done")
        found[name] = [_row(run, variant, tables, usage) for variant in _variants(run)]
    return {
        "circumstances": circumstances("bench slots", SlotsSettings, run),
        "settings": {
            "seeds": list(run.seeds),
            "slides": list(run.slides),
            "patches": run.patches,
            "fraction": run.fraction,
            "artefacts": run.artefacts,
            "epochs": run.epochs,
            "rate": run.rate,
            "tokens": run.tokens,
            "standardize": run.standardize,
            "claimed_share": _CLAIMED,
            "phantom_version": PHANTOM_VERSION,
        },
        "fillings": found,
        "labels_sha256": hashes,
    }


def _variants(run: SlotsSettings) -> list[_Variant]:
    """(λ, dead_slots) of every model that is trained."""
    return [(weight, "mask") for weight in run.weights] + [(weight, "constant") for weight in run.constant]


def _contender(run: SlotsSettings, variant: _Variant) -> Contender:
    weight, dead = variant
    options = (f"aux_weight={weight:g}", *(() if dead == "mask" else (f"dead_slots={dead}",)))
    return Contender("tcssa", run.tokens, "attention", options)


def _phantom(run: SlotsSettings, seed: int) -> _Cohort:
    rows = build_bank(replace(run.bank, split=seed), run.out / f"bank-{seed}", workers=run.workers)
    return _make_cohort(
        run, run.out / f"phantom-{seed}", rows, seed, lambda: _rendered_artefacts(replace(run.bank, split=seed), seed)
    )


def _mosaic(run: SlotsSettings, seed: int) -> _Cohort:
    plan = replace(run.mosaic_bank, patches=tuple(map(str, run.mosaic)), split=seed % SPLITS_OF_GROUPS)
    folder = run.out / "bank-mosaic"
    rows = build_mosaic_bank(plan, folder, workers=run.workers)

    def make() -> ArtefactRows:
        return encode_artefacts(read_normal_patches(rows, folder, _FROM_MOSAIC), encoder=plan.encoder, seed=seed)

    return _make_cohort(run, run.out / f"mosaic-{seed}", rows, seed, make)


def _make_cohort(
    run: SlotsSettings, folder: Path, rows: PatchBank, seed: int, make: Callable[[], ArtefactRows]
) -> _Cohort:
    plan = CohortPlan(fraction=run.fraction, slides=run.slides, patches=run.patches, seed=seed)
    write_cohort(folder, plan, rows)
    features = features_folder(folder, rows.plan.encoder, rows.job)
    evidence = rows.classes.tumours
    out = folder / "with-artefacts"
    where = add_artefacts(folder, features, out, make, evidence=evidence, share=run.artefacts, seed=seed)
    return _Cohort(folder, out, where, evidence)


def _rendered_artefacts(plan: BankPlan, seed: int) -> ArtefactRows:
    normal = replace(plan, normal=_ARTEFACTS, split=plan.split + _APART)
    images: list[list[np.ndarray]] = [[] for _ in SPLITS]
    for cls in range(len(TISSUE_CLASSES)):
        if TISSUE_CLASSES[cls].startswith("tumour"):
            continue
        for site in range(plan.sites):
            for setting in range(3):
                cuts = np.cumsum(_ARTEFACTS)[:-1]
                for split, part in enumerate(np.split(cell_patches(normal, cls, site, setting)[0], cuts)):
                    images[split] += list(part)
    return encode_artefacts(images, encoder=plan.encoder, seed=seed)


def _runs(run: SlotsSettings, cohort: _Cohort) -> Path:
    return cohort.folder / ("runs" if run.standardize else "runs-raw")


def _train(run: SlotsSettings, cohort: _Cohort, seed: int) -> None:
    train_all(
        [_contender(run, variant) for variant in _variants(run)],
        HoldoutSettings(
            features=cohort.features,
            labels=cohort.folder / "labels.csv",
            standardize=run.standardize,
            recipe=Recipe(epochs=run.epochs, lr=run.rate, plateau_patience=run.epochs, early_stop=run.epochs),
            draws=run.draws,
        ),
        _runs(run, cohort),
        seeds=(seed,),
        workers=run.workers,
    )


def _usage(run: SlotsSettings, model_folder: Path, cohort: _Cohort, slide_ids: Sequence[str]) -> SlotTable:
    """Slot usage on these slides, in their order."""
    model = load(model_folder)
    truth = pd.read_parquet(cohort.folder / "truth" / "patches.parquet")
    classes = truth.groupby(truth["slide_id"].astype(str), sort=False)["class"]
    artefacts = cohort.artefacts.groupby("slide_id")["row"].apply(np.asarray).to_dict()
    slides = []
    with progress("counting", len(slide_ids)) as bar:
        for slide_id in slide_ids:
            kind = np.where(np.isin(classes.get_group(slide_id).to_numpy(), cohort.evidence), EVIDENCE, OTHER)
            kind[artefacts.get(slide_id, [])] = ARTEFACT
            with torch.no_grad():
                tokens = condense_slide(model, read_bag(cohort.features / f"{slide_id}.h5"))
            parts = (tokens.index.numpy(), tokens.weight.numpy(), tokens.contribution.numpy())
            slides.append(slide_slots(*parts, kind, run.tokens))
            bar.advance(bar.task_ids[0])
    return joined(slides)


def _row(
    run: SlotsSettings,
    variant: _Variant,
    tables: dict[_Variant, list[pd.DataFrame]],
    usage: dict[_Variant, list[SlotTable]],
) -> dict[str, Any]:
    """Metrics of one variant with intervals over seeds and patients; AUROC also as the difference to the first one."""
    cases = [table["case_id"].astype(str).tolist() for table in tables[variant]]

    def over(statistics: Sequence[Statistic]) -> Interval:
        return nested_bootstrap(list(zip(cases, statistics, strict=True)), draws=run.draws)

    row: dict[str, Any] = {"weight": variant[0], "dead_slots_are": variant[1]}
    row["auroc"] = over([statistic(table, "auroc") for table in tables[variant]]).as_dict()
    pairs = zip(tables[variant], tables[_variants(run)[0]], strict=True)  # each pair has one seed and the same slides
    row["auroc_difference"] = over([_difference(one, other) for one, other in pairs]).as_dict()
    for name, metric in USAGE.items():
        row[name] = over([partial(metric, slots) for slots in usage[variant]]).as_dict()
    row["seeds_over_claimed"] = sum(USAGE["top1_share"](t, np.arange(len(t.best))) > _CLAIMED for t in usage[variant])
    return row


def _difference(one: pd.DataFrame, other: pd.DataFrame) -> Statistic:
    first, second = statistic(one, "auroc"), statistic(other, "auroc")
    return lambda rows: first(rows) - second(rows)


def _named(row: dict[str, Any]) -> str:
    return f"λ = {row['weight']:g}" + (", constant" if row["dead_slots_are"] == "constant" else "")


_SAID = {
    "auroc": "AUROC",
    "auroc_difference": "the same, minus the first column",
    "top1_share": "best slot: patches of all",
    "top1_share_of_a_slide": "the same within each slide",
    "top2_membership": "top-2 members of one slot",
    "mass_share": "heaviest slot: mass",
    "dead_slots": "dead slots",
    "evidence_purity": "purity of evidence",
    "artefact_slots": "artefact slots",
    "read_from_evidence": "read from evidence",
    "read_from_artefacts": "read from artefacts",
}


def markdown(found: dict[str, Any]) -> str:
    """The study as a page: one table per filling with one column per λ."""
    settings = found["settings"]
    scale = "standardized" if settings["standardize"] else "not standardized"
    parts = []
    for name, rows in found["fillings"].items():
        columns = [f"{name} [95 %]", *(_named(row) for row in rows)]
        lines = [[said, *(shown(row[key]) for row in rows)] for key, said in _SAID.items()]
        over = [f"{row['seeds_over_claimed']} of {len(settings['seeds'])}" for row in rows]
        lines.append([f"seeds with a slot over {100 * settings['claimed_share']:g} % of patches", *over])
        n = rows[0]["auroc"]
        seeds = len(settings["seeds"])
        counted = f"{n['n']} test slides of {n['patients']} patients over {seeds} bank splits with one seed each."
        parts.append(f"{table(columns, lines)}\n{counted}\n")
    return f"""# Slots: the effect of λ

{about(found["circumstances"])}
TC-SSA, {settings["tokens"]} slots, attention pooling, features {scale}; needle of
{100 * settings["fraction"]:g} %, artefacts {100 * settings["artefacts"]:g} %, about {settings["patches"]} patches
per slide, {" / ".join(map(str, settings["slides"]))} slides train / val / test. {settings["epochs"]} epochs at a
learning rate of {settings["rate"]:g}; the best epoch on validation slides is kept. Each seed has its own bank, cohort
and initialisation; intervals resample seeds and, within each seed, patients. Phantoms are of version
{settings["phantom_version"]}.

{"".join(parts)}
Shares are over the patches of all test slides. Purity of evidence: for a tumour patch, the share of tumour in its slot
({settings["fraction"]:g} if mixed evenly). Artefact slots: slots with at least 1 % of the patches, most of them
artefacts. Constant: the token of a slot without patches enters the pooling, as in the authors' code; otherwise it is
masked. Read from: the share of the pooled vector that came through such patches (artefacts
{settings["artefacts"]:g} if read evenly).

{"".join(f"- labels of {name}: sha256 {digest}" + chr(10) for name, digest in found["labels_sha256"].items())}"""
