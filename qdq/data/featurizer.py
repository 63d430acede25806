"""Examples of any kind -> features for a task, with tokenizers that are made once."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import TYPE_CHECKING, Any

from qdq.data.features import (
    Feature,
    choice_features,
    ids_features,
    question_features,
    shortened,
    text_features,
    token_features,
)
from qdq.data.kinds import ChoiceExample, Example, IdsExample, QuestionExample, TextExample, TokenExample
from qdq.data.masking import Masking, mask_tokens
from qdq.data.truncation import check_room, for_words, truncating
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qdq.data.encoder import TextEncoder

__all__ = ["Featurizer", "max_question"]

_LOG = logging.getLogger(__name__)

_KINDS: dict[str, type[Example]] = {
    "question-answering": QuestionExample,
    "token-classification": TokenExample,
    "multiple-choice": ChoiceExample,
}


def max_question(encoder: TextEncoder, max_length: int, stride: int) -> int:
    """Most tokens of a question, so that each window moves on by a twelfth of its length at least."""
    return max_length - encoder.tokenizer.num_special_tokens_to_add(True) - stride - max(1, max_length // 12)


class Featurizer:
    """Features of examples, whatever their kind; tokenizers that cut are made once."""

    def __init__(
        self, encoder: TextEncoder, task: str, *, max_length: int, stride: int = 0, masking: Masking | None = None
    ) -> None:
        self._encoder = encoder
        self._task = task
        self._max_length = length = max_length
        self._stride = stride
        self._cut_questions = 0
        self._masking = masking or Masking()
        if task == "question-answering":
            check_room(encoder.tokenizer, length, is_pair=True)
            cutting = truncating(encoder.tokenizer, length, strategy="only_second", stride=stride)
        elif task == "token-classification":
            cutting = truncating(for_words(encoder.tokenizer), length)
        else:
            cutting = truncating(encoder.tokenizer, length)
        self._tokenizer = cutting

    def __call__(self, examples: Sequence[Example]) -> list[Feature]:
        """Their features, in their order."""
        features: list[Feature] = []
        for kind, group in groupby(examples, key=type):
            features += self._features(kind, list(group))
        return features

    def _features(self, kind: type[Example], examples: list[Any]) -> list[Feature]:
        length, task = self._max_length, self._task
        if kind is IdsExample and task not in {"question-answering", "multiple-choice"}:
            of_tokens = task in {"token-classification", "masked-lm"}
            vocab_size = self._encoder.vocab_size
            return self._masked(ids_features(examples, max_length=length, vocab_size=vocab_size, of_tokens=of_tokens))
        if kind is not _KINDS.get(task, TextExample):
            raise DataError(f"{examples[0].place}: {task} wants examples of another kind than {kind.__name__}")
        if kind is QuestionExample:
            return self._of_questions(examples)
        if kind is TokenExample:
            return token_features(examples, self._tokenizer)
        is_pair = kind is ChoiceExample or any(example.text_pair is not None for example in examples)
        check_room(self._tokenizer, length, is_pair=is_pair)
        if kind is ChoiceExample:
            return choice_features(examples, self._tokenizer)
        return self._masked(text_features(examples, self._tokenizer))

    def _of_questions(self, examples: list[QuestionExample]) -> list[Feature]:
        encoder, stride = self._encoder, self._stride
        whole = [example.question for example in examples]
        questions = shortened(whole, encoder.tokenizer, max_question(encoder, self._max_length, stride))
        self._cut_questions += sum(one != other for one, other in zip(whole, questions, strict=True))
        return question_features(examples, self._tokenizer, questions=questions, stride=stride, cls_id=encoder.cls_id)

    def warn(self) -> None:
        """Log how many questions were cut, if any were."""
        if self._cut_questions:
            _LOG.warning(
                "%d questions are longer than %d tokens and were cut, so that windows of %d tokens with stride %d have "
                "room for their context; a smaller stride or longer windows leave more",
                self._cut_questions,
                max_question(self._encoder, self._max_length, self._stride),
                self._max_length,
                self._stride,
            )

    def _masked(self, features: list[Feature]) -> list[Feature]:
        if self._task != "masked-lm":
            return features
        return [f if f.targets else mask_tokens(f, self._encoder, self._masking) for f in features]
