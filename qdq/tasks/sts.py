"""Semantic textual similarity: does the cosine of two embeddings follow the people who scored the pair?"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from qdq.data.examples import TextExample
from qdq.errors import DataError
from qdq.tasks.embeddings import embed, embedding_settings
from qdq.tasks.metrics import correlations
from qdq.tasks.scoring import Scores
from qdq.tasks.table import TableBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qdq.data.examples import Examples
    from qdq.tasks.scoring import Job

__all__ = ["score"]

_CHUNK = 512  # vectors whose cosines are computed at once


def score(job: Job) -> Scores:
    """Spearman's and Pearson's correlation of cosine and score; per pair the two numbers are kept.

    Raises:
        DataError: the data holds no pairs of texts with scores.
    """
    examples = job.examples("sts")
    table = TableBuilder("similarity", "score")
    vectors = embed(job, _texts(examples, table), rows_per_example=2)
    done = 0
    while chunk := list(islice(vectors, _CHUNK)):
        pairs = np.stack(chunk).reshape(len(chunk) // 2, 2, -1)
        cosines = np.einsum("ph,ph->p", pairs[:, 0], pairs[:, 1])
        table.put(np.arange(done, done + len(cosines)), similarity=cosines)
        done += len(cosines)
    return Scores(
        table.finish(),
        correlations("similarity", "score"),
        skipped=examples.skipped,
        settings=embedding_settings(job),
    )


def _texts(examples: Examples, table: TableBuilder) -> Iterator[TextExample]:
    """Both texts of every pair, one after the other; the scores go to the table."""
    for example in examples:
        if not isinstance(example, TextExample) or example.text_pair is None:
            raise DataError(
                f"{examples.name}, {example.location}: no second text; the task sts needs pairs with a score"
            )
        table.put([example.index], score=[float(example.label)])  # type: ignore[arg-type]
        for place, text in enumerate((example.text, example.text_pair)):
            yield TextExample(2 * example.index + place, example.location, text, None, None)
