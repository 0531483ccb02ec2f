"""Predict with a classifier; the result is a table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from abbe.data.dataset import Batches, SlideDataset, SlideRecord, collate
from abbe.models.classifier import Classifier


@torch.no_grad()
def predict(model: Classifier, records: Sequence[SlideRecord], *, split: str = "", batch_size: int = 8) -> pd.DataFrame:
    """One row per slide: slide_id, case_id, split, label, predicted, and p_<class> for each class (they sum to 1).

    The model is set to eval mode, so a row does not depend on the other slides of the batch.
    """
    model.eval()
    classes = model.config.classes
    device = next(model.parameters()).device
    dataset = SlideDataset(records, cache_bytes=0)
    rows = []
    for numbers in Batches(len(records), batch_size, seed=None):
        batch = collate([dataset[number] for number in numbers])
        probabilities = model(batch.bags.to(device)).probabilities.cpu().double()
        for number, shares in zip(numbers, probabilities.tolist(), strict=True):
            record = records[number]
            rows.append(
                {
                    "slide_id": record.slide_id,
                    "case_id": record.case_id,
                    "split": split,
                    "label": classes[record.label],
                    "predicted": classes[max(range(len(classes)), key=shares.__getitem__)],
                    **{f"p_{name}": share for name, share in zip(classes, shares, strict=True)},
                }
            )
    return pd.DataFrame(rows)
