"""The steps of `abbe demo`, from slide to report, on rendered slides."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from abbe.console import say
from abbe.errors import AbbeError
from abbe.evaluate.compare import Contender, predictions_on_test, scored, train_all
from abbe.evaluate.settings import HoldoutSettings
from abbe.metrics.bootstrap import shown
from abbe.phantom.bank import SETTINGS, PatchBank, build_bank
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import TISSUE_CLASSES, site_stain
from abbe.phantom.scores import ceiling_scores
from abbe.phantom.tasks import needle_layout
from abbe.phantom.writer import features_folder, write_cohort
from abbe.slides.encode import encode_slides
from abbe.slides.settings import EncodeSettings
from abbe.store import commit
from abbe.store.outcomes import Outcome
from abbe.store.trident import features_path, job_name
from abbe.verbs.settings import DemoSettings
from abbe.verbs.steps import condense_source
from abbe.view.figure import Figure, png
from abbe.view.heatmap import draw, thumbnail_for
from abbe.view.overlay import overview_figure, truth_figure
from abbe.view.plots import interval_plot, training_curves
from abbe.view.report import Picture, Section, write_report

CONTENDERS = (
    Contender("none", 1.0, "attention"),
    Contender("tcssa", 32, "attention"),
    Contender("random", 32, "attention"),
    Contender("mean", 1, "mean"),
)
_SIDE = 16  # patches per side of a rendered slide: 4,096 pixels
_PATCHES = 180
_EVIDENCE = 0.05  # tumour share of a rendered slide: nine patches, large enough to see in a picture
_TUMOURS = ("tumour_a2", "tumour_b2", "tumour_b1")


def tour(run: DemoSettings) -> dict[str, Any]:
    """Run all steps in order; returns the metrics of the report as plain JSON values."""
    clock = _Clock()
    slides = render_slides(run)
    clock.lap("render three slides of 4,096 × 4,096 pixels")
    outcomes = encode_slides(slides, run.out / "encoded", EncodeSettings(workers=run.workers))
    failed = [o for o in outcomes if o.outcome != "done"]
    if failed:
        raise AbbeError(f"{failed[0].path}: {failed[0].outcome} at {failed[0].stage}: {failed[0].reason}")
    clock.lap(f"detect tissue and encode {sum(o.patches for o in outcomes)} patches")
    rows = build_bank(run.bank, run.out / "bank", workers=run.workers)
    clock.lap(f"render and encode a bank of {len(rows.cls)} patches")
    cohort = run.out / "cohort"
    record = write_cohort(cohort, run.plan, rows)
    clock.lap(f"sample {record['slides']} slides from the bank")
    reports = train_all(
        CONTENDERS,
        HoldoutSettings(
            features=features_folder(cohort, run.bank.encoder),
            labels=cohort / "labels.csv",
            recipe=run.recipe,
            draws=run.draws,
        ),
        run.out / "runs",
        seeds=[run.recipe.seed],
        workers=run.workers,
    )
    clock.lap(f"train and evaluate {len(CONTENDERS)} models")
    metrics = {name: found[0]["metrics"]["test"] for name, found in reports.items()}
    metrics |= _bounds(run, rows)
    model = run.out / "runs" / CONTENDERS[1].name / f"seed{run.recipe.seed}" / "model"
    pictures = _pictures(run, slides, outcomes, model)
    clock.lap("condense the slides and draw pictures")
    found = {"metrics": metrics, "difficulty": record["difficulty"], "seconds": clock.laps, "peak_gib": peak_gib()}
    _write_page(run, found, reports, record, outcomes, pictures)
    return found


def render_slides(run: DemoSettings) -> list[Path]:
    """Render three slides with one tumour deposit each. Finished slides of an earlier run are kept."""
    paths = []
    for number, tumour in enumerate(_TUMOURS):
        rng = np.random.default_rng([run.plan.seed, number])
        cls = TISSUE_CLASSES.index(tumour)
        layout = needle_layout(rng, _PATCHES, tumour_class=cls, fraction=_EVIDENCE, shape=(_SIDE, _SIDE))
        slide_id = f"phantom-{number + 1}-{tumour}"
        path = run.out / "slides" / f"{slide_id}.tiff"
        if not commit.is_done(path):
            stain = site_stain(number % run.bank.sites, number % SETTINGS, run.bank.seed)
            write_phantom_slide(run.out, slide_id, layout, stain=stain, seed=run.plan.seed + number)
        paths.append(path)
    return paths


def _bounds(run: DemoSettings, rows: PatchBank) -> dict[str, Any]:
    """Reference scores: `ceiling` counts patches by class as a linear probe sees it, `oracle` reads the truth map."""
    table = predictions_on_test(run.out / "runs", CONTENDERS[0].name, [run.recipe.seed])[0]
    seen = ceiling_scores(run.out / "cohort", rows, table["slide_id"].tolist())
    labels = (table["label"] == "b").to_numpy(int)
    scores = {"ceiling": seen, "oracle": labels.astype(float)}
    cases = table["case_id"].tolist()
    return {name: {"auroc": scored(labels, score, cases, draws=run.draws).as_dict()} for name, score in scores.items()}


def _pictures(run: DemoSettings, slides: list[Path], outcomes: list[Outcome], model: Path) -> list[Picture]:
    job = run.out / "encoded" / job_name(0.5, 256, 0)
    pictures = []
    for slide, outcome in zip(slides, outcomes, strict=True):
        bag = features_path(job, run.bank.encoder, outcome.slide_id)
        tokens = condense_source(bag, str(model), run.out / "tokens" / f"{outcome.slide_id}.safetensors")
        prediction = ", ".join(f"{name}: {share:.2f}" for name, share in tokens.about["probabilities"].items())
        truth = run.out / "truth" / f"{outcome.slide_id}.png"
        thumbnail = thumbnail_for(slide, tokens)
        drawn = {"truth": truth_figure(thumbnail, truth, TISSUE_CLASSES), **draw(slide, tokens)}
        _write(run, f"{outcome.slide_id}_overview", overview_figure(thumbnail, tokens, truth, TISSUE_CLASSES))
        captions = {
            "truth": f"{outcome.slide_id}: the truth map. The model predicts {prediction}.",
            "slots": "Each patch has the colour of its main slot.",
            "weight": "The share of each patch in the pooled vector.",
            "gallery": "The most typical patches of the largest slots.",
        }
        for name, figure in drawn.items():
            pictures.append(Picture(_write(run, f"{outcome.slide_id}_{name}", figure), captions[name]))
    return pictures


def _write(run: DemoSettings, name: str, figure: Figure) -> bytes:
    pixels = png(figure)
    commit.write_bytes(run.out / "pictures" / f"{name}.png", pixels, format="picture")
    return pixels


def _write_page(
    run: DemoSettings,
    found: dict[str, Any],
    reports: dict[str, list[dict[str, Any]]],
    record: dict[str, Any],
    outcomes: list[Outcome],
    pictures: list[Picture],
) -> None:
    metrics, probe = found["metrics"], found["difficulty"]
    first = reports[CONTENDERS[0].name][0]
    n, patients = first["slides"]["test"], first["patients"]["test"]
    rows = [[name, shown(row["auroc"]), shown(row.get("balanced_accuracy"))] for name, row in metrics.items()]
    histories = {
        c.name: pd.read_csv(run.out / "runs" / c.name / f"seed{run.recipe.seed}" / "history.csv") for c in CONTENDERS
    }
    intervals = {name: row["auroc"] for name, row in metrics.items()}
    chart = interval_plot(intervals, label="AUROC on held-out patients", chance=0.5)
    task = (
        f"A slide holds about {run.plan.patches} patches; {run.plan.fraction:.1%} of them are one tumour deposit. The "
        "question is its subtype, a or b. The rest of the slide does not depend on it."
    )
    basis = (
        f"{first['slides']['train']} slides for training, {first['slides']['val']} for early stopping, {n} slides of "
        f"{patients} other patients for testing; the three share no patient and no rendered patch. "
        f"One seed ({run.recipe.seed}); intervals resample patients. “none” keeps every patch; “ceiling” counts "
        "patches by the subtype that a linear probe of single patches gives them (balanced accuracy over 12 classes "
        f"{probe['probe_all_classes']:.2f}, a2 against b2 {probe['probe_a2_b2']:.2f}); “oracle” reads the truth map."
    )
    length = (
        f"Every model was trained for {run.recipe.epochs} epochs. That is short for “none”: attention over all patches "
        "may need more to find a needle (see the curves). abbe bench needle trains longer and with several seeds."
    )
    steps = "Three slides were rendered pixel by pixel, opened with OpenSlide, cut into patches and condensed by tcssa."
    caution = (
        "Phantom slides are procedural renderings with known truth, not tissue. They show which patches a method keeps "
        "or loses, not its clinical performance."
    )
    sections = [
        Section(
            "Comparison",
            [task, basis, length],
            ["method – tokens – pooling", "AUROC [95 %]", "balanced accuracy [95 %]"],
            rows,
            [Picture(png(chart), "AUROC of the table."), Picture(png(training_curves(histories)), "Validation loss.")],
        ),
        Section("Patches kept on each slide", [steps], pictures=pictures),
        Section(
            "Outcomes of encoding",
            columns=["slide", "outcome", "patches"],
            rows=[[o.slide_id, o.outcome, o.patches] for o in outcomes],
        ),
        Section(
            "Method and run time",
            [
                f"Peak memory of the largest process: {found['peak_gib']:.2f} GiB.",
                f"Labels table sha256 {record['labels_sha256']}; truth sha256 {record['truth_sha256']}.",
                caution,
            ],
            ["step", "seconds"],
            [[step, f"{seconds:.1f}"] for step, seconds in found["seconds"].items()],
        ),
    ]
    write_report(run.out / "report.html", "Abbe: a tour on phantom slides", sections)


def peak_gib() -> float:
    """Peak resident memory of this process or of any child that has ended, in GiB."""
    kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kib / 2**20


class _Clock:
    """Seconds per step, printed after each."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, step: str) -> None:
        now = time.monotonic()
        self.laps[step] = now - self._last
        self._last = now
        say(f"{self.laps[step]:6.1f} s  {step}")
