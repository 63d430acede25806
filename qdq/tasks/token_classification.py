"""Token classification: a label for every word, and the entities that the labels describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.examples import TokenExample
from qdq.errors import DataError, MissingPackageError
from qdq.tasks.evaluator import Scores
from qdq.tasks.example_table import TableBuilder
from qdq.tasks.label_order import LabelPairs
from qdq.tasks.metrics import overlap, ratio
from qdq.tasks.sequence_classification import labels_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from qdq.data.batches import Batch
    from qdq.tasks.evaluator import Evaluator

__all__ = ["OUTSIDE", "entities_finder", "score"]

OUTSIDE = "O"
_PREFIXES = ("B-", "I-", "E-", "S-")


def score(evaluator: Evaluator) -> Scores:
    """Score F1, precision and recall of entities by seqeval, and the accuracy of words.

    The label of a word is that of its first token. A word that the model does not see, because the sentence was cut
    before it, counts as outside of every entity. Labels that describe no entities, such as parts of speech, give the
    accuracy alone. Five numbers are kept for each sentence.

    Raises:
        DataError: An example has no words or no tags.
        MissingPackageError: seqeval is not installed.
    """
    labels = labels_of(evaluator.model.config)
    has_entities = _describe_entities(labels.names)
    table = TableBuilder("right", "words", "hits", "predicted", "true")
    count = _EntityCounter(labels.names) if has_entities else None
    orders = LabelPairs(labels)
    unseen = 0
    examples = evaluator.examples("token-classification", labels)
    for batch, outputs in evaluator.outputs(evaluator.batches(examples, "token-classification")):
        predictions = _of_words(batch, outputs["logits"].argmax(axis=-1), _outside(labels.names))
        truths = [_tags(example) for example in batch.examples]
        # A word that has no first token in its row was cut off, or is empty for the tokenizer.
        unseen += sum(map(len, truths)) - int((batch.word_ids.numpy() >= 0).sum())  # type: ignore[union-attr]
        pairs = list(zip(predictions, truths, strict=True))
        if examples.takes_ids:
            orders.add(np.concatenate(predictions), np.concatenate(truths))
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
    notes = [] if has_entities else ["the labels of the head describe no entities (B-, I-, E-, S-, O): accuracy only"]
    notes += orders.notes()
    if unseen:
        notes.append(
            f"{unseen} words are beyond the longest sequence or have no token, and count as outside of entities"
        )
    return Scores(
        table.finish(),
        (*overlap("hits", "predicted", "true"), accuracy) if has_entities else (accuracy,),
        skipped=examples.skipped,
        notes=tuple(notes),
    )


def entities_finder() -> Callable[[list[str]], list[tuple[str, int, int]]]:
    """Return the function that finds entities (type, first word, last word) in tags, as the script of CoNLL does.

    Raises:
        MissingPackageError: seqeval is not installed.
    """
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ModuleNotFoundError as error:
        raise MissingPackageError("seqeval", extra="evaluate", purpose="counting entities") from error
    return get_entities  # type: ignore[no-any-return]


class _EntityCounter:
    """Count how many entities are right, predicted and true."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = (*names, OUTSIDE)  # index -1, a word without prediction, takes the last entry
        self._outside = [index for index, name in enumerate(names) if name == OUTSIDE]
        self._entities = entities_finder()

    def __call__(self, prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[int, int, int]:
        found, true = self._of(prediction), self._of(truth)
        return len(found & true), len(found), len(true)

    def _of(self, tags: NDArray[Any]) -> set[tuple[str, int, int]]:
        # Sentences without entities are the most frequent ones, and need no call of seqeval.
        if np.isin(tags, [*self._outside, -1]).all():
            return set()
        return set(self._entities([self._names[tag] for tag in tags.tolist()]))


def _of_words(batch: Batch, tags: NDArray[Any], outside: int) -> list[NDArray[Any]]:
    """Return the predicted label of every word of every row; ``outside`` for words that have no token."""
    assert batch.word_ids is not None
    words = batch.word_ids.numpy()
    lengths = np.array([len(_tags(example)) for example in batch.examples])
    begins = np.concatenate(([0], np.cumsum(lengths)))
    # The words of all sentences one after another, to fill them with one assignment.
    flat = np.full(begins[-1], outside, dtype=np.int64)
    row, column = np.nonzero(words >= 0)
    flat[begins[row] + words[row, column]] = tags[row, column]
    return np.split(flat, begins[1:-1])


def _tags(example: Any) -> NDArray[Any]:
    if not isinstance(example, TokenExample) or example.tags is None:
        raise DataError(f"{example.location}: no words with tags; the task token-classification needs them")
    return np.asarray(example.tags, dtype=np.int64)


def _outside(names: Sequence[str]) -> int:
    """Return the id of the label for no entity, or -1 if there is none."""
    return names.index(OUTSIDE) if OUTSIDE in names else -1


def _describe_entities(names: Sequence[str]) -> bool:
    return all(name == OUTSIDE or name.startswith(_PREFIXES) for name in names) and len(names) > 1
