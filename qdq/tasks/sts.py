"""Semantic textual similarity: how the similarity of two embeddings correlates with the scores of people."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from qdq.data.examples import TextExample
from qdq.errors import DataError
from qdq.tasks.embeddings import Embeddings
from qdq.tasks.evaluator import Scores
from qdq.tasks.example_table import TableBuilder
from qdq.tasks.metrics import correlations
from qdq.tasks.similarity import pairwise_similarity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qdq.data.examples import Examples
    from qdq.tasks.evaluator import Evaluator

__all__ = ["score"]

_CHUNK = 512  # vectors whose similarities are computed at once


def score(evaluator: Evaluator) -> Scores:
    """Score Spearman's and Pearson's correlation of similarity and score. Two numbers are kept for each pair.

    The similarity is the cosine, unless the model's directory names another. The directory's default prompt is put in
    front of both texts.

    Raises:
        ConfigError: The directory asks for vectors that are not supported.
        DataError: The data has no pairs of texts with scores.
    """
    examples = evaluator.examples("sts")
    table = TableBuilder("similarity", "score")
    embeddings = Embeddings(evaluator)
    prompt = embeddings.folder.default_prompt
    # While embed() consumes the texts, _texts() stores the scores of their pairs in the table.
    vectors = embeddings.embed(_texts(examples, table), prompt=prompt, rows_per_example=2)
    done = 0
    while chunk := list(islice(vectors, _CHUNK)):
        pairs = np.stack(chunk).reshape(len(chunk) // 2, 2, -1)
        values = pairwise_similarity(pairs[:, 0], pairs[:, 1], embeddings.similarity)
        table.put(np.arange(done, done + len(values)), similarity=values)
        done += len(values)
    return Scores(
        table.finish(),
        correlations("similarity", "score"),
        skipped=examples.skipped,
        settings=embeddings.settings(prompt=prompt),
        notes=embeddings.notes(),
    )


def _texts(examples: Examples, table: TableBuilder) -> Iterator[TextExample]:
    """Yield both texts of every pair, one after the other, and store the scores in the table."""
    for example in examples:
        if not isinstance(example, TextExample) or example.text_pair is None:
            raise DataError(
                f"{examples.name}, {example.location}: no second text; the task sts needs pairs with a score"
            )
        table.put([example.index], score=[float(example.label)])  # type: ignore[arg-type]
        for half, text in enumerate((example.text, example.text_pair)):
            yield TextExample(2 * example.index + half, example.location, text, None, None)
