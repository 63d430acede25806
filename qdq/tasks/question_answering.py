"""Extractive question answering: find the best span of a context, or no answer (SQuAD 1.1 and 2.0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.examples import QuestionExample
from qdq.errors import DataError
from qdq.tasks.evaluator import Scores
from qdq.tasks.example_table import TableBuilder
from qdq.tasks.metrics import mean, ratio
from qdq.tasks.squad import answer_scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from qdq.data.batches import Batch
    from qdq.tasks.evaluation_settings import EvaluationSettings
    from qdq.tasks.evaluator import Evaluator

__all__ = ["Answer", "answers", "score"]


_ALL_ANSWERABLE = 'every question has an answer, so "no answer" is not considered; set --null-threshold to consider it'


@dataclass(frozen=True)
class Answer:
    """The answer of a model.

    Args:
        text: The best span of the context, or an empty text for "no answer".
        best: The best span of the context, also where the model gives no answer.
        null_difference: By how much the score of "no answer" exceeds that of the best span.
    """

    text: str
    best: str
    null_difference: float


@dataclass
class _Best:
    """The best span of the windows that have been computed: its characters in the context, and the scores."""

    windows: int = 0
    score: float = -np.inf
    span: tuple[int, int] = (0, 0)
    null: float = np.inf


def score(evaluator: Evaluator) -> Scores:
    """Score exact match and F1 of all questions, and of those with and without an answer.

    Five numbers are kept for each question.
    """
    settings = evaluator.settings
    examples = evaluator.examples("question-answering")
    table = TableBuilder("exact", "f1", "exact_of_best", "f1_of_best", "answerable")
    for question, answer in answers(evaluator, examples):
        exact, f1 = answer_scores(answer.text, question.answers or ())
        # Scored as well, because only the end of the data shows whether every question has an answer.
        exact_of_best, f1_of_best = answer_scores(answer.best, question.answers or ())
        table.put(
            [question.index],
            exact=[exact],
            f1=[f1],
            exact_of_best=[exact_of_best],
            f1_of_best=[f1_of_best],
            answerable=[bool(question.answers)],
        )
    numbers = table.finish()
    answerable = numbers["answerable"]
    notes: tuple[str, ...] = ()
    if settings.null_threshold is None and not settings.always_answer and answerable.all():
        numbers["exact"], numbers["f1"] = numbers["exact_of_best"], numbers["f1_of_best"]
        notes = (_ALL_ANSWERABLE,)
    metrics = [mean("f1"), mean("exact_match", "exact")]
    if 0 < answerable.sum() < len(answerable):
        # Figures of a subset are ratios of two columns, so that the bootstrap can resample them.
        numbers["unanswerable"] = 1 - answerable
        numbers["exact_of_answerable"] = numbers["exact"] * answerable
        numbers["f1_of_answerable"] = numbers["f1"] * answerable
        numbers["exact_of_unanswerable"] = numbers["exact"] - numbers["exact_of_answerable"]
        metrics += [
            ratio("has_answer_f1", "f1_of_answerable", "answerable"),
            ratio("has_answer_exact_match", "exact_of_answerable", "answerable"),
            ratio("no_answer_accuracy", "exact_of_unanswerable", "unanswerable"),
        ]
    names = ("stride", "n_best", "max_answer_length", "null_threshold", "always_answer")
    return Scores(numbers, tuple(metrics), skipped=examples.skipped, settings=settings.to_dict(*names), notes=notes)


def answers(evaluator: Evaluator, examples: Iterable[Any]) -> Iterator[tuple[QuestionExample, Answer]]:
    """Yield every question with the model's answer, in the order in which their last windows are computed."""
    settings = evaluator.settings
    pending: dict[int, _Best] = {}
    for batch, outputs in evaluator.outputs(evaluator.batches(examples, "question-answering", stride=settings.stride)):
        if batch.window_index is None or batch.window_count is None or batch.offsets is None:
            raise DataError(f"{batch.examples[0].location}: no question with its context")
        windows = _best_spans(batch, outputs["start_logits"], outputs["end_logits"], settings)
        for row, (index, window_count) in enumerate(
            zip(batch.index.tolist(), batch.window_count.tolist(), strict=True)
        ):
            best = pending.setdefault(index, _Best())
            span_score, begin, end, null = (values[row] for values in windows)
            best.windows += 1
            # As in SQuAD's script, the window that is surest of an answer decides about "no answer".
            best.null = min(best.null, float(null))
            if span_score > best.score:
                best.score, best.span = float(span_score), (int(begin), int(end))
            if best.windows == window_count:
                question = batch.examples[row]
                assert isinstance(question, QuestionExample)
                yield question, _answer(question, pending.pop(index), settings)


def _answer(question: QuestionExample, best: _Best, settings: EvaluationSettings) -> Answer:
    difference = best.null - best.score
    text = question.context[slice(*best.span)]
    is_none = not settings.always_answer and difference > (settings.null_threshold or 0.0)
    return Answer("" if is_none else text, text, difference)


def _best_spans(
    batch: Batch, start: NDArray[Any], end: NDArray[Any], settings: EvaluationSettings
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return for every row the score of the best span, its characters (begin, end), and the score of "no answer".

    A span goes from one of the ``n_best`` starts to one of the ``n_best`` ends and has tokens of the context only. The
    score of "no answer" is that of the first token, at which models are trained to point then.
    """
    assert batch.offsets is not None
    offsets = batch.offsets.numpy()
    inside = offsets[..., 0] >= 0
    null = start[:, 0] + end[:, 0]
    starts, ends = (_highest(np.where(inside, logits, -np.inf), settings.n_best) for logits in (start, end))
    length = ends[:, np.newaxis, :] - starts[:, :, np.newaxis] + 1
    rows = np.arange(len(start))[:, np.newaxis]
    # All pairs of the best starts and the best ends: (batch, n_best, n_best).
    score = start[rows, starts][:, :, np.newaxis] + end[rows, ends][:, np.newaxis, :]
    possible = inside[rows, starts][:, :, np.newaxis] & inside[rows, ends][:, np.newaxis, :]
    possible &= (length >= 1) & (length <= settings.max_answer_length)
    score = np.where(possible, score, -np.inf).reshape(len(start), -1)
    best = score.argmax(axis=1)
    first, last = np.unravel_index(best, length.shape[1:])
    row = rows[:, 0]
    return score[row, best], offsets[row, starts[row, first], 0], offsets[row, ends[row, last], 1], null


def _highest(logits: NDArray[Any], count: int) -> NDArray[Any]:
    """Return the positions ``(batch, count)`` of the highest logits ``(batch, seq)``, highest first."""
    order: NDArray[Any] = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return order
