"""Multiple choice: is the right ending the one with the highest score?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.tasks.metrics import mean
from qdq.tasks.scoring import Scores
from qdq.tasks.table import TableBuilder

if TYPE_CHECKING:
    from qdq.tasks.scoring import Job

__all__ = ["score"]


def score(job: Job) -> Scores:
    """Accuracy; per question one number is kept."""
    table = TableBuilder("accuracy")
    examples = job.examples("multiple-choice")
    for batch, outputs in job.run(job.batches(examples, "multiple-choice")):
        right = outputs["logits"].argmax(axis=1) == batch["labels"].numpy()
        table.put(batch.index, accuracy=right)
    return Scores(table.finish(), (mean("accuracy"),), skipped=examples.skipped)
