"""Slide classification: the classifier for a cohort, and its loss."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F

from abbe.data.cohort import Cohort
from abbe.data.dataset import LabelledBatch, SlideDataset, SlideRecord, collate
from abbe.errors import ConfigError
from abbe.metrics.classification import METRICS, quadratic_kappa
from abbe.models.classifier import Classifier
from abbe.models.config import ClassifierConfig
from abbe.train.loop import Step
from abbe.train.objectives.warm_start import check_frozen, starting_model, take_over
from abbe.train.settings import DEFAULT_TOKENS, ClassifierSettings
from abbe.types import Bag


@dataclass(frozen=True, eq=False)
class ClassifierPlan:
    """A checked configuration of a classifier, and the model that its condenser is initialised from."""

    config: ClassifierConfig
    start: Classifier | None
    frozen: bool
    standardize: bool

    def build(self, bags: Iterable[Tensor]) -> Classifier:
        """The untrained classifier, with condenser and scale of `start`, or a scale measured on bags [N, D]."""
        model = Classifier(self.config)
        if self.start is not None:
            take_over(model, self.start, frozen=self.frozen)
        elif self.standardize:
            model.scaler.measure(bags)
        return model


def plan_classifier(settings: ClassifierSettings, cohort: Cohort) -> ClassifierPlan:
    """Plan the classifier for a cohort, and test it on a few patches of one slide before anything is written.

    Raises ConfigError for invalid options, and CheckpointError for initial weights that do not fit.
    """
    check_frozen(settings.condenser_train, settings.condenser_init)
    start = None
    if settings.condenser_init is not None:
        start = starting_model(
            settings.condenser_init,
            settings.condenser,
            width=cohort.width,
            encoder=cohort.encoder,
            standardize=settings.standardize,
        )
    options = {
        **(start.config.condenser_options if start else {"tokens": DEFAULT_TOKENS}),
        **({} if settings.tokens is None else {"tokens": settings.tokens}),
        **parse_options(settings.condenser_options),
    }
    config = ClassifierConfig(
        dim=cohort.width,
        classes=cohort.classes,
        condenser=settings.condenser,
        condenser_options=options,
        pooling=settings.pooling,
        encoder=cohort.encoder,
    )
    plan = ClassifierPlan(config, start, settings.condenser_train == "frozen", settings.standardize)
    budget = _try(plan, cohort.splits["train"][0])
    return dataclasses.replace(
        plan, config=dataclasses.replace(config, condenser_options={**options, "tokens": budget})
    )


def _try(plan: ClassifierPlan, record: SlideRecord) -> int | float:
    """Compute the loss on a few patches of a slide; returns the budget that the condenser uses."""
    bag, label = SlideDataset([record])[0]
    few = dataclasses.replace(bag, features=bag.features[:64], coords=None if bag.coords is None else bag.coords[:64])
    trial = plan.build([few.features])
    with torch.no_grad():
        loss = ClassifyObjective()(trial.train(), collate([(few, label)])).loss_sum
    if not bool(torch.isfinite(loss)):
        raise ConfigError(
            f"{plan.config.condenser} with {plan.config.condenser_options}: the loss is {float(loss)} before any "
            "training; an option, or the scale of unstandardised features, is out of range"
        )
    return trial.condenser.tokens


def balanced_weights(cohort: Cohort) -> list[float]:
    """n / (C · n_c) for each class of the training slides, 0 for one without; their mean over the slides is 1."""
    labels = [record.label for record in cohort.splits["train"]]
    known = np.unique(labels)
    weights = dict(zip(known.tolist(), compute_class_weight("balanced", classes=known, y=labels), strict=True))
    return [float(weights.get(number, 0.0)) for number in range(len(cohort.classes))]


@dataclass(frozen=True)
class ClassifyObjective:
    """Cross-entropy of slide classes, plus the losses of condenser, pooling and auxiliary heads, all with weight 1.

    class_weights: weight of each class in every cross-entropy; None for 1.
    """

    class_weights: Sequence[float] | None = None

    def collate(self, samples: Sequence[tuple[Bag, int]]) -> LabelledBatch:
        return collate(samples)

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> Step:
        prediction = model(batch.bags)
        n = len(batch.labels)
        task = self._cross_entropy(prediction.logits, batch.labels)
        extra = sum((loss * n for loss in prediction.condensed.losses.values()), task.new_zeros(()))
        for logits in prediction.auxiliary.values():
            extra = extra + self._cross_entropy(logits, batch.labels)
        if prediction.instance_loss is not None:
            extra = extra + prediction.instance_loss(batch.labels)
        outputs = {"probabilities": prediction.probabilities.float(), "labels": batch.labels}
        return Step(task + extra, task, prediction.condensed.metrics, outputs)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights).float()
        return F.cross_entropy(logits.float(), labels, weight, reduction="sum")

    def metrics(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        labels, probabilities = outputs["labels"].numpy(), outputs["probabilities"].double().numpy()
        measured = {name: metric(labels, probabilities) for name, metric in METRICS.items()}
        return {**measured, "qwk": quadratic_kappa(labels, probabilities)}


def parse_options(given: tuple[str, ...]) -> dict[str, Any]:
    """Parse name=value pairs; a value that is valid JSON (number, true, false) is parsed, any other is a string."""
    options: dict[str, Any] = {}
    elsewhere = {"tokens": "use --tokens for the budget", "dim": "the width is read from the features"}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"condenser option {pair!r}: expected name=value, such as aux_weight=0.01")
        if name in elsewhere:
            raise ConfigError(f"condenser option {pair!r}: {elsewhere[name]}")
        if name in options:
            raise ConfigError(f"condenser option {name!r} is given twice")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
