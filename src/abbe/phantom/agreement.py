"""Whether patches of whole slides look like those of the bank: one linear probe reads both, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from abbe.data import SPLITS
from abbe.errors import InputError
from abbe.phantom.bank import PatchBank
from abbe.phantom.scores import predicted_classes, train_probe
from abbe.store.bags import read_bag

PURE = 0.9
"""share of a patch's pixels that must be of its class, for the patch to be compared"""


def agreement(bank: PatchBank, features: np.ndarray, cls: np.ndarray) -> pd.DataFrame:
    """Recall of a probe fitted on the bank's train split: on its test split, and on patches of slides.

    features: [N, D] of patches of slides.  cls: their classes, [N].  Returns one row for each class that occurs and one
    for ``all``, in which classes have the weights that they have on the slides. Columns: bank_patches, bank,
    slide_patches, slides, and difference (slides minus bank).
    """
    test = bank.split == SPLITS.index("test")
    right_bank = (predicted_classes(bank) == bank.cls)[test]
    right = train_probe(bank).predict(features) == cls
    rows = {}
    for number in np.unique(cls):
        of_bank, of_slides = bank.cls[test] == number, cls == number
        rows[bank.classes.names[number]] = {
            "bank_patches": int(of_bank.sum()),
            "bank": float(right_bank[of_bank].mean()),
            "slide_patches": int(of_slides.sum()),
            "slides": float(right[of_slides].mean()),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    weights = table["slide_patches"] / len(cls)
    table.loc["all"] = {
        "bank_patches": table["bank_patches"].sum(),
        "bank": (weights * table["bank"]).sum(),
        "slide_patches": len(cls),
        "slides": (weights * table["slides"]).sum(),
    }
    table = table.astype({"bank_patches": int, "slide_patches": int})
    return table.assign(difference=table["slides"] - table["bank"])


def encoded_patches(
    cohort: str | Path, features: Sequence[str | Path], *, pure: float = PURE
) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] and classes [N] of the patches of a pixel-level cohort whose purity is at least ``pure``.

    cohort: its folder.  features: files that `abbe encode` made of its slides, with its patch size and no overlap.
    Raises InputError if a slide is not of the cohort.
    """
    truth = pd.read_parquet(Path(cohort) / "truth" / "patches.parquet").astype({"slide_id": str})
    of_slide = dict(tuple(truth[truth["purity"] >= pure].groupby("slide_id")))
    rows, classes = [], []
    for path in features:
        bag = read_bag(path)
        if bag.slide_id not in set(truth["slide_id"]):
            raise InputError(f"{path}: no slide {bag.slide_id!r} in {cohort}")
        if bag.coords is None or bag.patch_size_level0 is None:
            raise InputError(f"{path}: does not state where its patches lie; encode the slides with abbe encode")
        places = pd.DataFrame(bag.coords.numpy() // float(bag.patch_size_level0), columns=["x", "y"]).astype(int)
        both = places.reset_index().merge(of_slide.get(bag.slide_id, truth[:0]), on=["x", "y"])
        rows.append(bag.features.float().numpy()[both["index"]])
        classes.append(both["class"].to_numpy(np.int64))
    return np.concatenate(rows), np.concatenate(classes)
