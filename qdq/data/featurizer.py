"""Turn examples into the features of a task, with the function that fits their kind."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import TYPE_CHECKING, Any

from qdq.data.example_types import ChoiceExample, Example, IdsExample, QuestionExample, TextExample, TokenExample
from qdq.data.features import (
    Feature,
    Masking,
    choice_features,
    ids_features,
    mask_tokens,
    question_features,
    shortened,
    text_features,
    token_features,
)
from qdq.data.tokenizer import check_room, check_vectors, for_words, with_truncation
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qdq.data.tokenizer import TextEncoder

__all__ = ["Featurizer", "max_question"]

_LOG = logging.getLogger(__name__)

_KINDS: dict[str, type[Example]] = {
    "question-answering": QuestionExample,
    "token-classification": TokenExample,
    "multiple-choice": ChoiceExample,
}


def max_question(encoder: TextEncoder, max_length: int, stride: int) -> int:
    """Return the longest question in tokens that lets each window move on by at least a twelfth of its length."""
    return max_length - encoder.tokenizer.num_special_tokens_to_add(True) - stride - max(1, max_length // 12)


class Featurizer:
    """Turn examples into features for one task.

    Args:
        encoder: The tokenizer and its special ids; a copy that cuts is made once.
        task: One of :data:`qdq.data.columns.TASKS`.
        max_length: The largest number of tokens in a row.
        stride: The tokens that a window of a context repeats from the window before it.
        masking: The settings of masked-lm.
        source: The name of the source of the examples, for messages.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        task: str,
        *,
        max_length: int,
        stride: int = 0,
        masking: Masking | None = None,
        source: str = "the data",
    ) -> None:
        self._source = source
        self._encoder = encoder
        self._task = task
        self._max_length = length = max_length
        self._stride = stride
        self._cut_questions = 0
        self._has_pairs = False
        self._masking = masking or Masking()
        if task == "question-answering":
            check_room(encoder.tokenizer, length, is_pair=True)
            # The windows cover the whole context, so that no end of it is cut.
            cutting = with_truncation(encoder.tokenizer, length, strategy="only_second", stride=stride)
        elif task == "token-classification":
            cutting = with_truncation(for_words(encoder.tokenizer), length, side=encoder.truncation_side)
        else:
            cutting = with_truncation(encoder.tokenizer, length, side=encoder.truncation_side)
        self._tokenizer = cutting

    def __call__(self, examples: Sequence[Example]) -> list[Feature]:
        """Return the features of the examples, in order."""
        features: list[Feature] = []
        for kind, group in groupby(examples, key=type):
            features += self._features(kind, list(group))
        rows = ((feature.example.location, row.ids) for feature in features for row in feature.rows)
        check_vectors(self._encoder, rows, source=self._source)
        return features

    def _features(self, kind: type[Example], examples: list[Any]) -> list[Feature]:
        length, task = self._max_length, self._task
        if kind is IdsExample and task not in {"question-answering", "multiple-choice"}:
            of_tokens = task in {"token-classification", "masked-lm"}
            encoder = self._encoder
            vocab_size = encoder.vocab_size if encoder.word_rows is None else encoder.word_rows
            return self._masked(
                ids_features(
                    examples,
                    max_length=length,
                    vocab_size=vocab_size,
                    type_rows=encoder.type_rows,
                    of_tokens=of_tokens,
                )
            )
        if kind is not _KINDS.get(task, TextExample):
            raise DataError(f"{examples[0].location}: {task} does not take examples of the kind {kind.__name__}")
        if kind is QuestionExample:
            return self._of_questions(examples)
        if kind is TokenExample:
            return token_features(examples, self._tokenizer)
        is_pair = kind is ChoiceExample or any(example.text_pair is not None for example in examples)
        check_room(self._tokenizer, length, is_pair=is_pair)
        self._has_pairs |= is_pair
        if kind is ChoiceExample:
            return choice_features(examples, self._tokenizer)
        return self._masked(text_features(examples, self._tokenizer))

    def _of_questions(self, examples: list[QuestionExample]) -> list[Feature]:
        encoder, stride = self._encoder, self._stride
        self._has_pairs = True
        whole = [example.question for example in examples]
        questions = shortened(whole, encoder.tokenizer, max_question(encoder, self._max_length, stride))
        self._cut_questions += sum(one != other for one, other in zip(whole, questions, strict=True))
        return question_features(examples, self._tokenizer, questions=questions, stride=stride, cls_id=encoder.cls_id)

    def warn(self) -> None:
        """Log what the examples gave reason for: a note about pairs, and the number of questions that were cut."""
        if self._has_pairs and self._encoder.pair_note:
            _LOG.warning(self._encoder.pair_note)
        if self._cut_questions:
            _LOG.warning(
                "%d questions are longer than %d tokens and were cut, to leave room for the context in windows of %d "
                "tokens with stride %d; a smaller stride or longer windows leave more room",
                self._cut_questions,
                max_question(self._encoder, self._max_length, self._stride),
                self._max_length,
                self._stride,
            )

    def _masked(self, features: list[Feature]) -> list[Feature]:
        if self._task != "masked-lm":
            return features
        return [f if f.targets else mask_tokens(f, self._encoder, self._masking) for f in features]
