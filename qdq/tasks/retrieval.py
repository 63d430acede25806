"""Retrieval: whether the passages that answer a query are among the nearest ones.

A row is ``{"query": ..., "positive": ..., "negatives": [...]}``: a text, one or more passages that answer it, and any
number of passages that do not. Every passage of the file is ranked for every query. Other column names are possible:

1. For the query: ``question``, ``anchor``.
2. For the positive: ``positives``, ``passage``, ``context``, ``document``.
3. For the negatives: ``negative``, ``hard_negatives``.

SQuAD's JSON is therefore a retrieval set, too: each question has to find its paragraph among all paragraphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.examples import TextExample
from qdq.data.records import Problems
from qdq.data.source import draw, open_source
from qdq.errors import DataError
from qdq.sentence.folder import SETTINGS_FILE
from qdq.tasks.embeddings import Embeddings
from qdq.tasks.evaluator import Scores
from qdq.tasks.example_table import TableBuilder
from qdq.tasks.metrics import mean
from qdq.tasks.similarity import similarity_matrix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from qdq.sentence.folder import SentenceFolder
    from qdq.tasks.evaluator import Evaluator
    from qdq.tasks.example_table import Numbers

__all__ = ["RECALLS", "score"]

RECALLS = (1, 5, 10)
MRR = 10

_QUERY = ("query", "question", "anchor")
_POSITIVE = ("positive", "positives", "passage", "context", "document")
_NEGATIVE = ("negative", "negatives", "hard_negatives")


@dataclass(frozen=True)
class _Row:
    location: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


def score(evaluator: Evaluator) -> Scores:
    """Score recall at 1, 5 and 10 and the mean reciprocal rank within 10, by the similarity of embeddings.

    The similarity is the cosine, unless the model's directory names another. Queries and passages get the prompts that
    ``encode_query`` and ``encode_document`` of sentence-transformers put in front of them.

    Recall is the share of a query's positives among the nearest passages. Passages as similar as a positive
    count as nearer, so that a model with equal embeddings for all texts scores 0. Four numbers are kept for each query,
    and the embedding of each passage.

    Raises:
        ConfigError: The directory asks for vectors that are not supported.
        DataError: Rows have no query or no positive; the message lists all of them.
    """
    rows = _Rows(evaluator)
    embeddings = Embeddings(evaluator)
    folder = embeddings.folder
    ids: dict[bytes, int] = {}
    # The data is read twice: first for all passages, whose embeddings stay in memory, then for the queries.
    vectors = list(embeddings.embed(_passages(rows, ids), prompt=folder.document_prompt))
    passages = np.stack(vectors or [np.zeros(0, dtype=np.float32)])
    if not ids:
        raise DataError(f"{rows.name}: no row with a query and a passage that answers it")
    relevant: dict[int, NDArray[Any]] = {}
    table = TableBuilder(*(f"recall@{k}" for k in RECALLS), f"mrr@{MRR}")
    count, seed = evaluator.settings.num_samples, evaluator.settings.seed
    chosen = rows if count is None else draw(rows, count, seed)
    texts = _queries(chosen, ids, relevant)
    for batch, queries in embeddings.embed_in_batches(texts, prompt=folder.query_prompt):
        similarities = similarity_matrix(queries, passages, embeddings.similarity)
        found = [
            _of_query(values, relevant.pop(index))
            for index, values in zip(batch.index.tolist(), similarities, strict=True)
        ]
        table.put(batch.index, **{name: [row[name] for row in found] for name in found[0]})
    return Scores(
        table.finish(),
        tuple(mean(name) for name in (f"mrr@{MRR}", *(f"recall@{k}" for k in RECALLS))),
        settings={
            **embeddings.settings(query_prompt=folder.query_prompt, passage_prompt=folder.document_prompt),
            "passages": len(passages),
        },
        notes=(*embeddings.notes(), *_prompt_notes(folder)),
    )


def _prompt_notes(folder: SentenceFolder) -> list[str]:
    """Return a sentence if a prompt looks made for passages, and is not put in front of them."""
    if (name := folder.unused_passage_prompt) is None:
        return []
    return [
        f"the prompt {name!r} is not put in front of passages, as in sentence-transformers, which takes 'document' "
        f"first: call it 'document' in {folder.root / SETTINGS_FILE} to use it"
    ]


def _of_query(similarities: Numbers, positives: NDArray[Any]) -> dict[str, float]:
    """Return the metrics of one query from its similarity to every passage."""
    # A positive ranks after all other passages of the same similarity; the order among positives does not matter.
    others = np.delete(similarities, positives)
    own = -np.sort(-similarities[positives])
    ranks = np.array([int((others >= value).sum()) for value in own]) + np.arange(1, len(own) + 1)
    recalls = {f"recall@{k}": float((ranks <= k).mean()) for k in RECALLS}
    return {**recalls, f"mrr@{MRR}": 1 / ranks[0] if ranks[0] <= MRR else 0.0}


def _passages(rows: Iterable[_Row], ids: dict[bytes, int]) -> Iterator[TextExample]:
    """Yield every passage once and put its number into ``ids``."""
    for row in rows:
        for text in (*row.positives, *row.negatives):
            digest = _digest(text)
            if digest not in ids:
                ids[digest] = len(ids)
                yield TextExample(ids[digest], row.location, text, None, None)


def _queries(
    rows: Iterable[_Row], ids: Mapping[bytes, int], relevant: dict[int, NDArray[Any]]
) -> Iterator[TextExample]:
    """Yield every query and put the numbers of its positives into ``relevant``."""
    for index, row in enumerate(rows):
        relevant[index] = np.unique([ids[_digest(text)] for text in row.positives])
        yield TextExample(index, row.location, row.query, None, None)


def _digest(text: str) -> bytes:
    """Return a short digest of a text, so that millions of passages need not be in memory."""
    return blake2b(text.encode(), digest_size=16).digest()


class _Rows:
    """The rows of the data, which can be read more than once."""

    def __init__(self, evaluator: Evaluator) -> None:
        settings, data = evaluator.settings, evaluator.data
        self._columns = settings.columns
        source = open_source(list(data) if isinstance(data, Iterator) else data, split=settings.split)
        self.name = source.name
        self._source = source

    def __iter__(self) -> Iterator[_Row]:
        problems = Problems(self.name)
        for record in self._source:
            row = self._row(record.location, record.values, problems)
            if row is not None and not problems:
                yield row
        problems.raise_if_any()

    def _row(self, location: str, values: Mapping[str, Any], problems: Problems) -> _Row | None:
        columns = self._columns
        query = _first(values, [columns.text or columns.question] if columns else [], _QUERY)
        positives = _texts(_first(values, [columns.text_pair or columns.context] if columns else [], _POSITIVE))
        negatives = _texts(_first(values, [], _NEGATIVE))
        if not isinstance(query, str) or not query.strip():
            problems.add(location, f"no query: a text called {' or '.join(_QUERY)}; it has {', '.join(values)}")
        elif not positives:
            problems.add(
                location,
                f"no passage that answers it: texts called {' or '.join(_POSITIVE)}; it has {', '.join(values)}",
            )
        elif negatives is None:
            problems.add(location, f"{' or '.join(_NEGATIVE)} must be a text or a list of texts")
        else:
            return _Row(location, query, positives, negatives)
        return None


def _first(values: Mapping[str, Any], asked: Sequence[str | None], usual: Sequence[str]) -> Any:
    """Return the value under the name that was asked for, or under the first usual name."""
    names = [name for name in asked if name is not None] or usual
    return next((values[name] for name in names if name in values), None)


def _texts(value: Any) -> tuple[str, ...] | None:
    """Return one or several texts as a tuple, empty for None; return None for values that are not text."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    return tuple(texts)
