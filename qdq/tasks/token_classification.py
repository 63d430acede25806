"""Token classification: a label for every word, and the entities that the labels spell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.examples import TokenExample
from qdq.errors import DataError, MissingPackageError
from qdq.tasks.metrics import overlap, ratio
from qdq.tasks.scoring import Scores
from qdq.tasks.sequence_classification import labels_of
from qdq.tasks.table import TableBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from qdq.data.batches import Batch
    from qdq.tasks.scoring import Job

__all__ = ["OUTSIDE", "entities_finder", "score"]

OUTSIDE = "O"
_PREFIXES = ("B-", "I-", "E-", "S-")


def score(job: Job) -> Scores:
    """F1, precision and recall of entities by seqeval, and the accuracy of words; five numbers are kept per sentence.

    A word's label is that of its first piece. A word that the model does not see, because the sentence is cut before
    it, is outside of every entity, and its label is wrong unless it says so too. Labels that spell no entities (parts
    of speech, say) give the accuracy alone.

    Raises:
        DataError: sentences come without words and tags.
        MissingPackageError: seqeval is not installed.
    """
    labels = labels_of(job.subject.config)
    has_entities = _spell_entities(labels.names)
    table = TableBuilder("right", "words", "hits", "predicted", "true")
    count = _EntityCounter(labels.names) if has_entities else None
    unseen = 0
    examples = job.examples("token-classification", labels)
    for batch, outputs in job.run(job.batches(examples, "token-classification")):
        predictions = _of_words(batch, outputs["logits"].argmax(axis=-1), _outside(labels.names))
        truths = [_tags(example) for example in batch.examples]
        unseen += sum(map(len, truths)) - int((batch.word_ids.numpy() >= 0).sum())  # type: ignore[union-attr]
        pairs = list(zip(predictions, truths, strict=True))
        entities = np.array([count(*pair) if count else (0, 0, 0) for pair in pairs], dtype=np.float64).reshape(-1, 3)
        table.put(
            batch.index,
            right=[int((found == true).sum()) for found, true in pairs],
            words=[len(true) for _, true in pairs],
            hits=entities[:, 0],
            predicted=entities[:, 1],
            true=entities[:, 2],
        )
    accuracy = ratio("accuracy", "right", "words")
    notes = [] if has_entities else ["the labels of the head spell no entities (B-, I-, E-, S-, O): accuracy only"]
    if unseen:
        notes.append(
            f"{unseen} words lie behind the longest sequence or are nothing to the tokenizer, and count as unlabelled"
        )
    return Scores(
        table.finish(),
        (*overlap("hits", "predicted", "true"), accuracy) if has_entities else (accuracy,),
        skipped=examples.skipped,
        notes=tuple(notes),
    )


def entities_finder() -> Callable[[list[str]], list[tuple[str, int, int]]]:
    """What finds the entities (type, first word, last word) of a sentence's tags, as CoNLL's own script does.

    Raises:
        MissingPackageError: seqeval is not installed.
    """
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ModuleNotFoundError as error:
        raise MissingPackageError("seqeval", extra="evaluate", purpose="counting entities") from error
    return get_entities  # type: ignore[no-any-return]


class _EntityCounter:
    """How many entities are right, predicted and true."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = (*names, OUTSIDE)  # -1 is a word without prediction
        self._outside = [index for index, name in enumerate(names) if name == OUTSIDE]
        self._entities = entities_finder()

    def __call__(self, prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[int, int, int]:
        found, true = self._of(prediction), self._of(truth)
        return len(found & true), len(found), len(true)

    def _of(self, tags: NDArray[Any]) -> set[tuple[str, int, int]]:
        if np.isin(tags, [*self._outside, -1]).all():
            return set()
        return set(self._entities([self._names[tag] for tag in tags.tolist()]))


def _of_words(batch: Batch, tags: NDArray[Any], outside: int) -> list[NDArray[Any]]:
    """The predicted label of every word of every row: that at its first piece, ``outside`` where it has none."""
    assert batch.word_ids is not None
    words = batch.word_ids.numpy()
    lengths = np.array([len(_tags(example)) for example in batch.examples])
    begins = np.concatenate(([0], np.cumsum(lengths)))
    flat = np.full(begins[-1], outside, dtype=np.int64)
    row, column = np.nonzero(words >= 0)
    flat[begins[row] + words[row, column]] = tags[row, column]
    return np.split(flat, begins[1:-1])


def _tags(example: Any) -> NDArray[Any]:
    if not isinstance(example, TokenExample) or example.tags is None:
        raise DataError(f"{example.location}: no words with tags; the task token-classification needs them")
    return np.asarray(example.tags, dtype=np.int64)


def _outside(names: Sequence[str]) -> int:
    """The id of the label for no entity, -1 if there is none."""
    return names.index(OUTSIDE) if OUTSIDE in names else -1


def _spell_entities(names: Sequence[str]) -> bool:
    return all(name == OUTSIDE or name.startswith(_PREFIXES) for name in names) and len(names) > 1
