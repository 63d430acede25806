"""Sequence classification: one class, any number of labels, or a score for each text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.labels import Labels
from qdq.tasks.evaluator import Scores
from qdq.tasks.example_table import TableBuilder
from qdq.tasks.label_order import LabelPairs
from qdq.tasks.metrics import classification, correlations, mean, mean_squared_error, overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdq.models.config import ModelConfig
    from qdq.tasks.evaluator import Evaluator
    from qdq.tasks.example_table import Numbers
    from qdq.tasks.metrics import Metric

__all__ = ["labels_of", "score"]


def score(evaluator: Evaluator) -> Scores:
    """Score the metrics that fit the head.

    1. One class: accuracy, F1 and Matthews' correlation.
    2. A score (a head with a single output): Spearman's and Pearson's correlation and the mean squared error.
    3. Several labels, which are predicted where their logits are above 0: F1, precision and recall over all labels, and
       exact match.

    Two numbers are kept for each row, and four with several labels.
    """
    labels = labels_of(evaluator.model.config)
    kind, metrics = _kind(labels)
    table = TableBuilder(*kind)
    examples = evaluator.examples("sequence-classification", labels)
    for batch, outputs in evaluator.outputs(evaluator.batches(examples, "sequence-classification")):
        target = batch["labels"].numpy()
        table.put(batch.index, **_numbers(outputs["logits"], target, labels))
    finished = table.finish()
    notes = []
    if examples.takes_ids and not labels.multi_label and not labels.is_regression:
        pairs = LabelPairs(labels)
        pairs.add(finished["prediction"], finished["label"])
        notes = pairs.notes()
    return Scores(finished, metrics, skipped=examples.skipped, notes=tuple(notes))


def labels_of(config: ModelConfig) -> Labels:
    """Return the labels of a head."""
    multi_label = config.problem_type == "multi_label_classification"
    # id2label is what pipelines answer with, so it decides; label2id may be left over from an earlier head.
    if config.id2label:
        return Labels.of_ids(config.num_labels, config.id2label, multi_label=multi_label)
    return Labels.of(config.num_labels, config.label2id, multi_label=multi_label)


def _kind(labels: Labels) -> tuple[tuple[str, ...], tuple[Metric, ...]]:
    """Return the columns of the table and the metrics."""
    if labels.is_regression:
        return ("prediction", "label"), (
            *correlations("prediction", "label"),
            mean_squared_error("prediction", "label"),
        )
    if labels.multi_label:
        return ("hits", "predicted", "true", "exact"), (
            *overlap("hits", "predicted", "true"),
            mean("exact_match", "exact"),
        )
    return ("prediction", "label"), classification(len(labels.names))


def _numbers(logits: NDArray[Any], target: NDArray[Any], labels: Labels) -> dict[str, Numbers]:
    if labels.is_regression:
        return {"prediction": logits[:, 0].astype(np.float64), "label": target.reshape(-1).astype(np.float64)}
    if labels.multi_label:
        found, true = logits > 0, target > 0.5
        counts = {"hits": found & true, "predicted": found, "true": true}
        exact = (found == true).all(axis=1)
        return {**{name: flags.sum(axis=1).astype(np.float64) for name, flags in counts.items()}, "exact": exact * 1.0}
    return {"prediction": logits.argmax(axis=1).astype(np.float64), "label": target.astype(np.float64)}
