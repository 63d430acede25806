"""Examples -> features: what a model reads of each, and what it is to say. Pure functions, a file's worth at a time.

A feature has one row of tokens; of a multiple choice, one for each choice; of a long text with a question, one feature
for each window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding, Tokenizer

    from qdq.data.kinds import ChoiceExample, Example, IdsExample, QuestionExample, TextExample, TokenExample

__all__ = [
    "IGNORED",
    "Feature",
    "Row",
    "choice_features",
    "ids_features",
    "question_features",
    "shortened",
    "text_features",
    "token_features",
]

#: The label of a position that does not count.
IGNORED = -100

#: An int32 array ``(seq,)``, or ``(seq, 2)`` for offsets.
Ints: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens that the model reads as one sequence, each array ``(seq,)``. ``mask`` is None where all of them count."""

    ids: Ints
    types: Ints
    mask: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Feature:
    """What a model reads of an example; the other fields as in :class:`qdq.data.batches.Batch`.

    Args:
        example: The example.
        rows: One row; of a multiple choice, one for each choice.
        targets: By the name of the model's argument: a number, a vector, or an array ``(seq,)``.
    """

    example: Example
    rows: tuple[Row, ...]
    targets: dict[str, Any] = field(default_factory=dict)
    offsets: Ints | None = None
    word_ids: Ints | None = None
    best_context: np.ndarray | None = None
    part: int = 0
    parts: int = 1

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))


def text_features(examples: Sequence[TextExample], tokenizer: Tokenizer) -> list[Feature]:
    """Texts and pairs; the target is the label.

    Args:
        examples: In their order.
        tokenizer: One that cuts (:func:`qdq.data.truncation.truncating`).
    """
    texts = [e.text if e.text_pair is None else (e.text, e.text_pair) for e in examples]
    return [
        Feature(example, (_row(encoding),), _labels(example.label))
        for example, encoding in zip(examples, tokenizer.encode_batch(texts), strict=True)
    ]


def choice_features(examples: Sequence[ChoiceExample], tokenizer: Tokenizer) -> list[Feature]:
    """The text with each choice, as pairs; the target is the number of the right choice."""
    encodings = iter(tokenizer.encode_batch([(e.text, choice) for e in examples for choice in e.choices]))
    return [
        Feature(example, tuple(_row(next(encodings)) for _ in example.choices), _labels(example.label))
        for example in examples
    ]


def token_features(examples: Sequence[TokenExample], tokenizer: Tokenizer) -> list[Feature]:
    """Words; the targets are the tags, each at the first piece of its word.

    Args:
        examples: In their order.
        tokenizer: One that cuts, and that splits words (:func:`qdq.data.truncation.for_words`).
    """
    encodings = tokenizer.encode_batch([list(e.tokens) for e in examples], is_pretokenized=True)
    features = []
    for example, encoding in zip(examples, encodings, strict=True):
        words = _with_gaps(encoding.word_ids)
        begins = np.diff(words, prepend=-1) != 0
        word_ids = np.where(begins, words, -1)
        targets = {}
        if example.tags is not None:
            tags = np.array([*example.tags, IGNORED], dtype=np.int32)  # -1, no word, picks the last
            targets["labels"] = tags[word_ids]
        features.append(Feature(example, (_row(encoding),), targets, word_ids=word_ids))
    return features


def question_features(
    examples: Sequence[QuestionExample],
    tokenizer: Tokenizer,
    *,
    questions: Sequence[str],
    stride: int,
    cls_id: int | None,
) -> list[Feature]:
    """A question with its context, in as many windows as it takes; the targets are the first answer's two ends.

    Where the answer does not lie in the window whole, or there is none, both are the place of ``cls_id``.

    Args:
        examples: In their order.
        tokenizer: One that cuts the second text, with this stride.
        questions: Their questions, none so long that no window has room (:func:`shortened`).
        stride: Tokens that a window repeats of the one before.
        cls_id: The first token of a sequence.
    """
    encodings = tokenizer.encode_batch([(q, e.context) for q, e in zip(questions, examples, strict=True)])
    features = []
    for example, encoding in zip(examples, encodings, strict=True):
        windows = [encoding, *encoding.overflowing]
        all_offsets = [_context_offsets(window) for window in windows]
        best = best_contexts([offsets[:, 0] >= 0 for offsets in all_offsets], stride)
        for part, (window, offsets) in enumerate(zip(windows, all_offsets, strict=True)):
            row = _row(window)
            targets = {}
            if example.answers is not None and example.starts is not None:
                nothing = _place_of(cls_id, row.ids)
                first, last = nothing, nothing
                if example.answers:
                    begin = example.starts[0]
                    first, last = span_of(offsets, begin, begin + len(example.answers[0]), nothing=nothing)
                targets = {"start_positions": first, "end_positions": last}
            features.append(
                Feature(
                    example,
                    (row,),
                    targets,
                    offsets=offsets,
                    best_context=best[part],
                    part=part,
                    parts=len(windows),
                )
            )
    return features


def ids_features(examples: Sequence[IdsExample], *, max_length: int, vocab_size: int, of_tokens: bool) -> list[Feature]:
    """Token ids as they are; padding at their end goes, and what is too long is cut before its last token.

    Args:
        examples: In their order.
        max_length: Most tokens.
        vocab_size: Ids lie below it.
        of_tokens: Labels that are tuples are one a token.

    Raises:
        DataError: An id lies beyond the vocabulary.
    """
    features = []
    for example in examples:
        ids = np.array(example.input_ids, dtype=np.int64)
        if ids.min() < 0 or ids.max() >= vocab_size:
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
            raise DataError(f"{example.place}: the token id {wrong} is not one of the vocabulary's {vocab_size}")
        mask = np.ones_like(ids) if example.attention_mask is None else np.array(example.attention_mask)
        end = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else len(ids)
        keep = np.arange(end)
        if end > max_length:
            keep = np.append(keep[: max_length - 1], end - 1)
        types = np.zeros_like(ids) if example.token_type_ids is None else np.array(example.token_type_ids)
        row = Row(*(array[keep].astype(np.int32) for array in (ids, types, mask)))
        targets = _labels(example.label)
        if of_tokens and isinstance(example.label, tuple):
            targets = {"labels": np.array(example.label, dtype=np.int32)[keep]}
        features.append(Feature(example, (row,), targets))
    return features


def span_of(offsets: np.ndarray, begin: int, end: int, *, nothing: int) -> tuple[int, int]:
    """The first and the last token of characters ``[begin, end)``; ``nothing`` twice where the window lacks some.

    Args:
        offsets: ``(seq, 2)``, -1 where a token is not of the text.
        begin: The first character.
        end: The one behind the last.
        nothing: What to give where there is no such span.
    """
    (of_text,) = np.nonzero(offsets[:, 0] >= 0)
    if not len(of_text) or begin < offsets[of_text[0], 0] or end > offsets[of_text[-1], 1]:
        return nothing, nothing
    first = np.searchsorted(offsets[of_text, 0], begin, side="right") - 1
    last = np.searchsorted(offsets[of_text, 1], end, side="left")
    return int(of_text[first]), int(of_text[last])


def best_contexts(of_text: Sequence[np.ndarray], stride: int) -> list[np.ndarray]:
    """For each window, whether it is the one in which a token of the text has most text around it.

    A token that stands in several windows is best judged where the smaller of its two sides is largest; a longer window
    is a little better (Devlin et al. 2018, the SQuAD code that came with it).

    Args:
        of_text: For each window ``(seq,)``: whether the token is one of the text.
        stride: Tokens that a window repeats of the one before.
    """
    sizes = [int(found.sum()) for found in of_text]
    if len(sizes) == 1:
        return [of_text[0].copy()]
    begins = [part * (sizes[0] - stride) for part in range(len(sizes))]
    scores = np.full((len(sizes), begins[-1] + sizes[-1]), -1.0)
    for score, begin, size in zip(scores, begins, sizes, strict=True):
        places = np.arange(size)
        score[begin : begin + size] = np.minimum(places, size - 1 - places) + 0.01 * size
    winner = scores.argmax(axis=0)
    best = [found.copy() for found in of_text]
    for part, (flags, begin, size) in enumerate(zip(best, begins, sizes, strict=True)):
        flags[flags] = winner[begin : begin + size] == part
    return best


def _row(encoding: Encoding) -> Row:
    return Row(np.array(encoding.ids, dtype=np.int32), np.array(encoding.type_ids, dtype=np.int32))


def _labels(label: object) -> dict[str, Any]:
    return {} if label is None else {"labels": label}


def _with_gaps(numbers: Sequence[int | None]) -> Ints:
    """Numbers, with -1 in the place of None; numpy reads None as not a number."""
    floats = np.array(numbers, dtype=np.float64)
    return np.where(np.isnan(floats), -1, floats).astype(np.int32)


def _context_offsets(encoding: Encoding) -> Ints:
    """Characters ``(seq, 2)`` of the second text; -1 for all other tokens."""
    of_context = _with_gaps(encoding.sequence_ids) == 1
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    return np.where(of_context[:, np.newaxis], offsets, -1)


def _place_of(token_id: int | None, ids: Ints) -> int:
    return int(np.argmax(ids == token_id)) if token_id is not None else 0


def shortened(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """The texts, each cut behind its token number ``max_tokens``; the tokenizer is one that does not cut."""
    # a token has a character at least, and normalisation makes at most 18 of one
    if all(len(text) * 18 <= max_tokens for text in texts):
        return list(texts)
    cut = []
    for text, encoding in zip(texts, tokenizer.encode_batch(list(texts), add_special_tokens=False), strict=True):
        is_longer = len(encoding) > max_tokens
        cut.append(text[: encoding.offsets[max_tokens - 1][1]] if is_longer else text)
    return cut
