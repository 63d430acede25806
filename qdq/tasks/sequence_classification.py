"""Sequence classification: one label of several, any number of labels, or a score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.labels import Labels
from qdq.tasks.metrics import classification, correlations, mean, mean_squared_error, overlap
from qdq.tasks.scoring import Scores
from qdq.tasks.table import TableBuilder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdq.models.config import ModelConfig
    from qdq.tasks.metrics import Metric
    from qdq.tasks.scoring import Job
    from qdq.tasks.table import Numbers

__all__ = ["labels_of", "score"]


def score(job: Job) -> Scores:
    """The metrics of the head's kind; per row two numbers are kept, four with several labels.

    1. one label: accuracy, F1, Matthews;
    2. a score (a head with a single output): Spearman, Pearson, mean squared error;
    3. several labels, each of them there when its logit is above 0: F1, precision and recall over all, exact match.
    """
    labels = labels_of(job.subject.config)
    kind, metrics = _kind(labels)
    table = TableBuilder(*kind)
    examples = job.examples("sequence-classification", labels)
    for batch, outputs in job.run(job.batches(examples, "sequence-classification")):
        target = batch["labels"].numpy()
        table.put(batch.index, **_numbers(outputs["logits"], target, labels))
    return Scores(table.finish(), metrics, skipped=examples.skipped)


def labels_of(config: ModelConfig) -> Labels:
    """The labels of a head."""
    ids = config.label2id or {name: index for index, name in (config.id2label or {}).items()}
    return Labels.of(config.num_labels, ids, multi_label=config.problem_type == "multi_label_classification")


def _kind(labels: Labels) -> tuple[tuple[str, ...], tuple[Metric, ...]]:
    """Columns and metrics."""
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
