"""Retrieval: is the passage that answers a query among the nearest ones?

Rows are ``{"query": ..., "positive": ..., "negatives": [...]}``: a text, one passage or several that answer it, and any
number of others that do not. Every passage of the whole file is ranked for every query. Other names that do:

1. query: ``question``, ``anchor``; 2. positive: ``positives``, ``passage``, ``context``, ``document``;
3. negatives: ``negative``, ``hard_negatives``.

So SQuAD's JSON is a retrieval set as well: to each question its paragraph among all paragraphs.
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
from qdq.tasks.embeddings import embed, embed_in_batches, embedding_settings
from qdq.tasks.metrics import mean
from qdq.tasks.scoring import Scores
from qdq.tasks.table import TableBuilder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from qdq.tasks.scoring import Job
    from qdq.tasks.table import Numbers

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


def score(job: Job) -> Scores:
    """Recall at 1, 5 and 10 and the mean reciprocal rank within 10, by the cosine of embeddings.

    Recall is the share of a query's positives among the nearest passages. Passages at the same cosine as a positive
    count as nearer, so that a model that tells nothing apart gets nothing. Four numbers are kept per query, an
    embedding per passage.

    Raises:
        DataError: rows without query or positive, all of them.
    """
    rows = _Rows(job)
    ids: dict[bytes, int] = {}
    passages = np.stack(list(embed(job, _passages(rows, ids))) or [np.zeros(0, dtype=np.float32)])
    if not ids:
        raise DataError(f"{rows.name}: no row with a query and a passage that answers it")
    relevant: dict[int, NDArray[Any]] = {}
    table = TableBuilder(*(f"recall@{k}" for k in RECALLS), f"mrr@{MRR}")
    asked = rows if job.settings.num_samples is None else draw(rows, job.settings.num_samples, job.settings.seed)
    for batch, queries in embed_in_batches(job, _queries(asked, ids, relevant)):
        found = [
            _of_query(cosines, relevant.pop(index))
            for index, cosines in zip(batch.index.tolist(), queries @ passages.T, strict=True)
        ]
        table.put(batch.index, **{name: [row[name] for row in found] for name in found[0]})
    return Scores(
        table.finish(),
        tuple(mean(name) for name in (f"mrr@{MRR}", *(f"recall@{k}" for k in RECALLS))),
        settings={**embedding_settings(job), "passages": len(passages)},
    )


def _of_query(cosines: Numbers, positives: NDArray[Any]) -> dict[str, float]:
    """The metrics of one query from its cosine to every passage."""
    # At equal cosine a positive comes behind every other passage, and positives in any order.
    others = np.delete(cosines, positives)
    own = -np.sort(-cosines[positives])
    place = np.array([int((others >= value).sum()) for value in own]) + np.arange(1, len(own) + 1)
    recalls = {f"recall@{k}": float((place <= k).mean()) for k in RECALLS}
    return {**recalls, f"mrr@{MRR}": 1 / place[0] if place[0] <= MRR else 0.0}


def _passages(rows: Iterable[_Row], ids: dict[bytes, int]) -> Iterator[TextExample]:
    """Every passage once; ``ids`` gets its number."""
    for row in rows:
        for text in (*row.positives, *row.negatives):
            digest = _digest(text)
            if digest not in ids:
                ids[digest] = len(ids)
                yield TextExample(ids[digest], row.location, text, None, None)


def _queries(
    rows: Iterable[_Row], ids: Mapping[bytes, int], relevant: dict[int, NDArray[Any]]
) -> Iterator[TextExample]:
    """Every query; ``relevant`` gets the numbers of its positives."""
    for index, row in enumerate(rows):
        relevant[index] = np.unique([ids[_digest(text)] for text in row.positives])
        yield TextExample(index, row.location, row.query, None, None)


def _digest(text: str) -> bytes:
    """What stands for a text, so that a million passages need not be kept."""
    return blake2b(text.encode(), digest_size=16).digest()


class _Rows:
    """The rows of the data, as often as they are asked for."""

    def __init__(self, job: Job) -> None:
        settings, data = job.settings, job.data
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

    def _row(self, place: str, values: Mapping[str, Any], problems: Problems) -> _Row | None:
        columns = self._columns
        query = _first(values, [columns.text or columns.question] if columns else [], _QUERY)
        positives = _texts(_first(values, [columns.text_pair or columns.context] if columns else [], _POSITIVE))
        negatives = _texts(_first(values, [], _NEGATIVE))
        if not isinstance(query, str) or not query.strip():
            problems.add(place, f"no query: a text called {' or '.join(_QUERY)}; it has {', '.join(values)}")
        elif not positives:
            problems.add(
                place, f"no passage that answers it: texts called {' or '.join(_POSITIVE)}; it has {', '.join(values)}"
            )
        elif negatives is None:
            problems.add(place, f"{' or '.join(_NEGATIVE)} must be a text or a list of texts")
        else:
            return _Row(place, query, positives, negatives)
        return None


def _first(values: Mapping[str, Any], asked: Sequence[str | None], usual: Sequence[str]) -> Any:
    """The value asked for by name, or under the first of the usual names."""
    names = [name for name in asked if name is not None] or usual
    return next((values[name] for name in names if name in values), None)


def _texts(value: Any) -> tuple[str, ...] | None:
    """One text or several, none for nothing; None for what is no text."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    return tuple(texts)
