"""Masked language models: the probability of the masked tokens, and how often they are the first choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.features import IGNORED, Masking
from qdq.errors import DataError
from qdq.tasks.evaluator import Scores
from qdq.tasks.example_table import TableBuilder
from qdq.tasks.metrics import perplexity, ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdq.tasks.evaluator import Evaluator

__all__ = ["score"]


def score(evaluator: Evaluator) -> Scores:
    """Score pseudo-perplexity and accuracy of the masked positions, 15 % of the tokens.

    Three numbers are kept for each text.

    Raises:
        DataError: No position was masked.
    """
    settings = evaluator.settings
    examples = evaluator.examples("masked-lm", need_labels=False)
    table = TableBuilder("log_likelihood", "right", "tokens")
    masking = Masking(seed=settings.seed, only_mask=settings.only_mask)
    for batch, outputs in evaluator.outputs(evaluator.batches(examples, "masked-lm", masking=masking)):
        logits = outputs.get("logits", outputs.get("prediction_logits"))
        row, column = np.nonzero(batch["labels"].numpy() != IGNORED)
        target = batch["labels"].numpy()[row, column]
        # Only the masked positions, since a float64 copy of all logits would be large.
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
        raise DataError("no position was masked: there are too few texts, and they are too short; give more texts")
    return Scores(
        numbers,
        (perplexity("log_likelihood", "tokens"), ratio("accuracy", "right", "tokens")),
        skipped=examples.skipped,
        settings={"masked_tokens": int(numbers["tokens"].sum()), **settings.to_dict("seed", "only_mask")},
    )


def _of_tokens(logits: NDArray[Any], target: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the log-likelihood and the correctness ``(tokens,)`` of logits ``(tokens, vocab)``."""
    # The log of the softmax's denominator; without the maximum its exponentials could overflow.
    highest = logits.max(axis=1, keepdims=True)
    normalizer = highest[:, 0] + np.log(np.exp((logits - highest).astype(np.float64)).sum(axis=1))
    chosen = logits[np.arange(len(target)), target].astype(np.float64)
    return chosen - normalizer, (logits.argmax(axis=1) == target).astype(np.float64)
