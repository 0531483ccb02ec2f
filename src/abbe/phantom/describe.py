"""What a made slide is, in words and numbers: its row of labels.csv, and the truth its texts are composed from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from abbe.data import SPLITS
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.layout import Layout
from abbe.phantom.plan import Patient
from abbe.phantom.settings import LABELS, CohortPlan
from abbe.phantom.tasks import largest_deposit, til_pattern
from abbe.phantom.texts.truth import SlideTruth

Label = dict[str, Any]


def label_of(plan: CohortPlan, kinds: TissueClasses, name: str, split: int, patient: Patient, layout: Layout) -> Label:
    """A slide's row of labels.csv. The label of a mixture is left empty: it needs the median of all slides.

    What the patches' classes cannot say (grade, necrosis, lymphocytes of a mosaic) is empty.
    """
    classes = layout.patch_classes
    tumour = float(np.isin(classes, kinds.tumours).mean())
    shares = {known: _share(classes, kinds, known) for known in ("necrosis", "lymphocytes")}
    evidence = {
        "needle": tumour,
        "mixture": shares["necrosis"],
        "spatial": tumour + (shares["lymphocytes"] or 0.0),
    }
    labels = {"needle": patient.subtype, "mixture": "", "spatial": patient.pattern}
    return {
        "slide_id": name,
        "case_id": patient.case_id,
        "site": patient.site,
        "split": SPLITS[split],
        "n_patches": len(classes),
        "task": plan.task,
        "label": labels[plan.task],
        "subtype": patient.subtype,
        "grade": patient.grade if kinds.graded else "",
        "metastasis": ("no", "yes")[patient.metastasis] if kinds.graded else "",
        "necrosis_share": "" if shares["necrosis"] is None else shares["necrosis"],
        "til_pattern": _pattern(plan, kinds, patient, layout),
        "evidence_fraction": evidence[plan.task],
    }


def label_by_median(labels: list[Label]) -> None:
    """Fill in the labels of a mixture: the second where a slide has more necrosis than the median slide."""
    low, high = LABELS["mixture"]
    median = float(np.median([label["necrosis_share"] for label in labels]))
    for label in labels:
        label["label"] = high if label["necrosis_share"] > median else low


def labels_table(labels: list[Label]) -> str:
    """labels.csv, shares to six digits."""
    rows = [
        {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()} for row in labels
    ]
    return pd.DataFrame(rows).to_csv(index=False)


def truth_of(label: Label, layout: Layout, *, seed: int) -> SlideTruth:
    """The truth of a slide of rendered classes."""
    return SlideTruth(
        slide_id=label["slide_id"],
        case_id=label["case_id"],
        site=label["site"],
        split=label["split"],
        n_patches=label["n_patches"],
        counts={PHANTOM.names[cls]: count for cls, count in layout.counts.items()},
        subtype=label["subtype"],
        grade=label["grade"],
        metastasis=label["metastasis"] == "yes",
        til_pattern=label["til_pattern"],
        deposit_patches=largest_deposit(layout),
        seed=seed,
    )


def patches_of_slide(name: str, layout: Layout, bank_rows: np.ndarray | None) -> pd.DataFrame:
    """One row a patch, in the order of its features: slide_id, x and y in patch units, class, bank_row if drawn."""
    x, y = layout.coords.astype(np.int32).T
    table = pd.DataFrame({"slide_id": name, "x": x, "y": y, "class": layout.patch_classes})
    return table if bank_rows is None else table.assign(bank_row=bank_rows)


def _share(classes: np.ndarray, kinds: TissueClasses, name: str) -> float | None:
    return float((classes == kinds.number(name)).mean()) if name in kinds.names else None


def _pattern(plan: CohortPlan, kinds: TissueClasses, patient: Patient, layout: Layout) -> str:
    if plan.task == "spatial":
        return patient.pattern
    return til_pattern(layout, kinds) if "lymphocytes" in kinds.names else ""
