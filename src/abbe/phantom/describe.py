"""What the tables of a cohort say about a slide: its label, its patches, and the truth behind its texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from abbe.data import SPLITS
from abbe.phantom.classes import PHANTOM, TissueClasses
from abbe.phantom.layout import Layout
from abbe.phantom.plan import PlannedSlide
from abbe.phantom.settings import LABELS, CohortPlan
from abbe.phantom.tasks import largest_deposit, til_pattern
from abbe.phantom.texts.truth import SlideTruth

Label = dict[str, Any]


def label_of(plan: CohortPlan, classes: TissueClasses, slide: PlannedSlide, layout: Layout) -> Label:
    """A slide's row of labels.csv. The label of a mixture stays empty until :func:`label_by_median`.

    Empty too is what the classes of a mosaic cannot tell: grade, metastasis, necrosis, lymphocytes.
    """
    patient, patch_classes = slide.patient, layout.patch_classes
    tumour = float(np.isin(patch_classes, classes.tumours).mean())
    necrosis, lymphocytes = (
        float((patch_classes == classes.number(name)).mean()) if name in classes.names else None
        for name in ("necrosis", "lymphocytes")
    )
    if plan.task == "spatial":
        pattern = patient.pattern
    else:
        pattern = "" if lymphocytes is None else til_pattern(layout, classes)
    label, evidence = {
        "needle": (patient.subtype, tumour),
        "mixture": ("", necrosis),
        "spatial": (patient.pattern, tumour + (lymphocytes or 0.0)),
    }[plan.task]
    return {
        "slide_id": slide.slide_id,
        "case_id": patient.case_id,
        "site": patient.site,
        "split": SPLITS[slide.split],
        "n_patches": len(patch_classes),
        "task": plan.task,
        "label": label,
        "subtype": patient.subtype,
        "grade": patient.grade if classes.graded else "",
        "metastasis": ("no", "yes")[patient.metastasis] if classes.graded else "",
        "necrosis_share": "" if necrosis is None else necrosis,
        "til_pattern": pattern,
        "evidence_fraction": evidence,
    }


def label_by_median(labels: list[Label]) -> None:
    """Fill in the labels of a mixture: the second for slides with more necrosis than the median slide."""
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


def patch_table(
    slide_id: str, layout: Layout, *, bank_rows: np.ndarray | None, purity: np.ndarray | None
) -> pd.DataFrame:
    """One row per patch, in the order of its features.

    Columns: slide_id; x and y in patch units; class; purity, the share of its pixels that are of this class, NaN if it
    is not known; bank_row if it was drawn from a bank.
    """
    x, y = layout.coords.astype(np.int32).T
    table = pd.DataFrame({"slide_id": slide_id, "x": x, "y": y, "class": layout.patch_classes})
    table["purity"] = np.float32(np.nan) if purity is None else purity.astype(np.float32)
    return table if bank_rows is None else table.assign(bank_row=bank_rows)


def truth_of(label: Label, layout: Layout, *, seed: int) -> SlideTruth:
    """The truth of a slide of rendered classes."""
    shared = ("slide_id", "case_id", "site", "split", "n_patches", "subtype", "grade", "til_pattern")
    return SlideTruth(
        **{name: label[name] for name in shared},
        counts={PHANTOM.names[cls]: count for cls, count in layout.counts.items()},
        metastasis=label["metastasis"] == "yes",
        deposit_patches=largest_deposit(layout),
        seed=seed,
    )
