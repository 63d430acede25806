"""Masked language models: how probable, and how often the first choice, is the token behind the mask?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.batches import Masking
from qdq.errors import DataError
from qdq.tasks.metrics import perplexity, ratio
from qdq.tasks.scoring import Scores
from qdq.tasks.table import TableBuilder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdq.tasks.scoring import Job

__all__ = ["score"]

_IGNORED = -100


def score(job: Job) -> Scores:
    """Pseudo-perplexity and accuracy over the masked positions, 15 % of the tokens; three numbers are kept per text.

    Raises:
        DataError: no position was masked.
    """
    settings = job.settings
    examples = job.examples("masked-lm", need_labels=False)
    table = TableBuilder("log_likelihood", "right", "tokens")
    masking = Masking(seed=settings.seed, only_mask=settings.only_mask)
    for batch, outputs in job.run(job.batches(examples, "masked-lm", masking=masking)):
        logits = outputs.get("logits", outputs.get("prediction_logits"))
        row, column = np.nonzero(batch["labels"].numpy() != _IGNORED)
        target = batch["labels"].numpy()[row, column]
        likelihood, right = _of_tokens(np.asarray(logits)[row, column], target)
        rows = len(batch.index)
        table.put(
            batch.index,
            log_likelihood=np.bincount(row, weights=likelihood, minlength=rows),
            right=np.bincount(row, weights=right, minlength=rows),
            tokens=np.bincount(row, minlength=rows),
        )
    numbers = table.finish()
    if not numbers["tokens"].sum():
        raise DataError("no position was masked: the texts are too few and too short, give more of them")
    return Scores(
        numbers,
        (perplexity("log_likelihood", "tokens"), ratio("accuracy", "right", "tokens")),
        skipped=examples.skipped,
        settings={"masked_tokens": int(numbers["tokens"].sum()), **settings.to_dict("seed", "only_mask")},
    )


def _of_tokens(logits: NDArray[Any], target: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Log-likelihood and rightness ``(tokens,)`` of logits ``(tokens, vocab)``."""
    highest = logits.max(axis=1, keepdims=True)
    normalizer = highest[:, 0] + np.log(np.exp((logits - highest).astype(np.float64)).sum(axis=1))
    chosen = logits[np.arange(len(target)), target].astype(np.float64)
    return chosen - normalizer, (logits.argmax(axis=1) == target).astype(np.float64)
