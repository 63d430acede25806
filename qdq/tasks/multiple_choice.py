"""Multiple choice: how often the right choice has the highest score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.tasks.evaluator import Scores
from qdq.tasks.example_table import TableBuilder
from qdq.tasks.metrics import mean

if TYPE_CHECKING:
    from qdq.tasks.evaluator import Evaluator

__all__ = ["score"]


def score(evaluator: Evaluator) -> Scores:
    """Score the accuracy. One number is kept for each question."""
    table = TableBuilder("accuracy")
    examples = evaluator.examples("multiple-choice")
    for batch, outputs in evaluator.outputs(evaluator.batches(examples, "multiple-choice")):
        # Logits are (batch, choices).
        right = outputs["logits"].argmax(axis=1) == batch["labels"].numpy()
        table.put(batch.index, accuracy=right)
    return Scores(table.finish(), (mean("accuracy"),), skipped=examples.skipped)
