"""t-SNE: patch features of several cohorts in the plane, coloured by slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.patches import Patch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from abbe.console import progress
from abbe.errors import InputError
from abbe.models.classifier import Classifier
from abbe.store.bags import peek_bag, read_bag
from abbe.store.find import find_features
from abbe.types import TokenBatch
from abbe.view.figure import Figure
from abbe.view.painting import token_colours

_COMPONENTS = 50  # principal components that t-SNE starts from, as its authors recommend
_NAMED = 10  # slots in the legend


@dataclass(frozen=True, eq=False)
class Sample:
    """Patches sampled from one cohort. features: [n, D], standardized by the model.   slot: [n], −1 where dropped."""

    name: str
    slides: int
    features: np.ndarray
    slot: np.ndarray


def sample(model: Classifier, place: Path, patches: int, *, name: str, seed: int) -> Sample:
    """About `patches` patches of a folder of feature files, or of one file: the same number from every slide.

    Slides without patches are left out, and so are slides beyond the number of patches; `slides` counts the others.
    Raises InputError if there is no feature file, BagError if a file has another encoder or width than the model.
    """
    files = [file.path for file in find_features([place]) if not file.skip]
    files = [file for file in files if peek_bag(file)[0]]
    if not files:
        raise InputError(f"{place}: no feature file with patches")
    rng = np.random.default_rng(seed)
    shares = np.full(len(files), patches // len(files))
    shares[rng.permutation(len(files))[: patches % len(files)]] += 1
    rows, slots = [], []
    with progress(f"condensing {name}", len(files)) as bar, torch.no_grad():
        for file, share in zip(files, shares.tolist(), strict=True):
            if share:
                bag = read_bag(file, encoder=model.config.encoder, width=model.config.dim)
                batch = model.scaler(TokenBatch.pack([bag]))
                chosen = np.sort(rng.choice(len(bag), min(share, len(bag)), replace=False))
                rows.append(batch.features[chosen].numpy())
                slots.append(model.condenser(batch).assignment.main[chosen].numpy())
            bar.advance(bar.task_ids[0])
    return Sample(name, len(rows), np.concatenate(rows), np.concatenate(slots))


def tsne_figure(samples: Sequence[Sample], *, merges: bool, seed: int) -> Figure:
    """One panel per cohort in a shared embedding (t-SNE, van der Maaten & Hinton 2008).

    merges: whether slots have colours of their own; otherwise patches are kept or dropped.
    """
    features = np.concatenate([one.features for one in samples])
    slot = np.concatenate([one.slot for one in samples])
    cohort = np.repeat(np.arange(len(samples)), [len(one.slot) for one in samples])
    if not merges:
        slot = np.where(slot >= 0, 0, -1)
    parts = min(_COMPONENTS, *features.shape)
    with threadpool_limits(limits=1):  # the picture must not depend on the number of cores
        reduced = PCA(parts, random_state=seed).fit_transform(features)
        perplexity = min(30.0, (len(reduced) - 1) / 3)
        place = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(reduced)
    used, counts = np.unique(slot[slot >= 0], return_counts=True)
    order = used[np.argsort(-counts, kind="stable")]
    colours = np.full((int(slot.max(initial=0)) + 2, 3), 0.75)  # the last row, which index −1 selects, stays grey
    colours[order] = token_colours(len(order))
    figure = Figure(figsize=(4.6 * len(samples) + 1.6, 4.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(samples), squeeze=False, sharex=True, sharey=True)[0]
    for number, (axes, one) in enumerate(zip(panels, samples, strict=True)):
        axes.scatter(*place[cohort != number].T, s=2, color="0.93", linewidths=0)  # the other cohorts, for orientation
        here = cohort == number
        axes.scatter(*place[here].T, s=5, c=colours[slot[here]], linewidths=0)
        axes.set_title(f"{one.name}: {here.sum()} patches of {one.slides} slides", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    share = {int(k): counts[used == k][0] / len(slot) for k in order}
    names = [f"slot {k}, {share[int(k)]:.0%}" if merges else f"kept, {share[int(k)]:.0%}" for k in order[:_NAMED]]
    handles = [Patch(color=colours[k], label=name) for k, name in zip(order, names, strict=False)]
    if len(order) > _NAMED:
        handles.append(Patch(color="none", label=f"and {len(order) - _NAMED} more"))
    if (slot < 0).any():
        handles.append(Patch(color=colours[-1], label=f"dropped, {(slot < 0).mean():.0%}"))
    figure.legend(handles=handles, loc="outside right center", fontsize=7, frameon=False)
    return figure
