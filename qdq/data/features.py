"""Turn examples into features: the token ids that a model reads and the targets that it has to predict.

A feature has one row of tokens, or, for multiple choice, one row for each choice. A question whose context is long
gives several features, one for each window of the context.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from qdq.errors import ConfigError, DataError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding, Tokenizer

    from qdq.data.example_types import ChoiceExample, Example, IdsExample, QuestionExample, TextExample, TokenExample
    from qdq.data.tokenizer import TextEncoder

__all__ = [
    "IGNORED",
    "Feature",
    "Masking",
    "Row",
    "choice_features",
    "ids_features",
    "mask_tokens",
    "question_features",
    "shortened",
    "text_features",
    "token_features",
]


#: The label of a position that does not count in the loss.
IGNORED = -100

#: An int32 array ``(seq,)``, or ``(seq, 2)`` for offsets.
Ints: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of one sequence.

    Args:
        ids: Token ids ``(seq,)``.
        types: Token types ``(seq,)``.
        mask: Attention mask ``(seq,)``; None where every token counts.
    """

    ids: Ints
    types: Ints
    mask: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Feature:
    """What a model reads of an example, and what it has to predict.

    Args:
        example: The example.
        rows: One row, or, for multiple choice, one row for each choice.
        targets: By the name of the model's argument: a number, a vector, or an array ``(seq,)``.
        offsets: See :class:`qdq.data.batches.Batch`, as for the fields below.
        word_ids: See :class:`qdq.data.batches.Batch`.
        best_context: The batch has it as ``is_best_context``.
        window_index: See :class:`qdq.data.batches.Batch`.
        window_count: See :class:`qdq.data.batches.Batch`.
    """

    example: Example
    rows: tuple[Row, ...]
    targets: dict[str, Any] = field(default_factory=dict)
    offsets: Ints | None = None
    word_ids: Ints | None = None
    best_context: np.ndarray | None = None
    window_index: int = 0
    window_count: int = 1

    @property
    def length(self) -> int:
        """The number of tokens of the longest row."""
        return max(map(len, self.rows))


def text_features(examples: Sequence[TextExample], tokenizer: Tokenizer) -> list[Feature]:
    """Return the features of texts and pairs; the target is the label.

    Args:
        examples: The examples.
        tokenizer: A tokenizer that cuts (:func:`qdq.data.tokenizer.with_truncation`).
    """
    texts = [e.text if e.text_pair is None else (e.text, e.text_pair) for e in examples]
    return [
        Feature(example, (_row(encoding),), _labels(example.label))
        for example, encoding in zip(examples, tokenizer.encode_batch(texts), strict=True)
    ]


def choice_features(examples: Sequence[ChoiceExample], tokenizer: Tokenizer) -> list[Feature]:
    """Return the features of pairs of the text with each choice; the target is the index of the right choice."""
    encodings = iter(tokenizer.encode_batch([(e.text, choice) for e in examples for choice in e.choices]))
    return [
        Feature(example, tuple(_row(next(encodings)) for _ in example.choices), _labels(example.label))
        for example in examples
    ]


def token_features(examples: Sequence[TokenExample], tokenizer: Tokenizer) -> list[Feature]:
    """Return the features of words; the targets are the tags, each at the first token of its word.

    Args:
        examples: The examples.
        tokenizer: A tokenizer that cuts and takes words (:func:`qdq.data.tokenizer.for_words`).
    """
    encodings = tokenizer.encode_batch([list(e.tokens) for e in examples], is_pretokenized=True)
    features = []
    for example, encoding in zip(examples, encodings, strict=True):
        words = _with_gaps(encoding.word_ids)
        # A token begins a word where its word number differs from the token before.
        begins = np.diff(words, prepend=-1) != 0
        word_ids = np.where(begins, words, -1)
        targets = {}
        if example.tags is not None:
            tags = np.array([*example.tags, IGNORED], dtype=np.int32)  # index -1 (no word) takes the last entry
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
    """Return the features of questions with the windows of their contexts.

    The targets are the first and the last token of the first answer. Where the window does not have the whole answer,
    or there is no answer, both are the position of ``cls_id``.

    Args:
        examples: The examples.
        tokenizer: A tokenizer that cuts the second text with this stride.
        questions: The questions of the examples, short enough that each window has room (:func:`shortened`).
        stride: The tokens that a window repeats from the window before it.
        cls_id: The first token of a sequence.
    """
    encodings = tokenizer.encode_batch([(q, e.context) for q, e in zip(questions, examples, strict=True)])
    features = []
    for example, encoding in zip(examples, encodings, strict=True):
        windows = [encoding, *encoding.overflowing]
        all_offsets = [_context_offsets(window) for window in windows]
        best = best_contexts([offsets[:, 0] >= 0 for offsets in all_offsets], stride)
        for number, (window, offsets) in enumerate(zip(windows, all_offsets, strict=True)):
            row = _row(window)
            targets = {}
            if example.answers is not None and example.starts is not None:
                missing = _position_of(cls_id, row.ids)
                first, last = missing, missing
                if example.answers:
                    begin = example.starts[0]
                    first, last = span_of(offsets, begin, begin + len(example.answers[0]), missing=missing)
                targets = {"start_positions": first, "end_positions": last}
            features.append(
                Feature(
                    example,
                    (row,),
                    targets,
                    offsets=offsets,
                    best_context=best[number],
                    window_index=number,
                    window_count=len(windows),
                )
            )
    return features


def ids_features(
    examples: Sequence[IdsExample],
    *,
    max_length: int,
    vocab_size: int,
    type_rows: int | None = None,
    of_tokens: bool,
) -> list[Feature]:
    """Return the features of token ids. Padding at their end is removed, and long rows are cut before the last token.

    Args:
        examples: The examples.
        max_length: The largest number of tokens.
        vocab_size: The size of the vocabulary.
        type_rows: The number of token types of the model; None where it is not known.
        of_tokens: Whether a label that is a tuple has one entry for each token.

    Raises:
        DataError: An id is not in the vocabulary, or a type not one of the model's.
    """
    features = []
    for example in examples:
        ids = np.array(example.input_ids, dtype=np.int64)
        if ids.min() < 0 or ids.max() >= vocab_size:
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
            raise DataError(f"{example.location}: the token id {wrong} is not one of the vocabulary's {vocab_size}")
        mask = np.ones_like(ids) if example.attention_mask is None else np.array(example.attention_mask)
        # Padding inside the row stays masked; only the padding at the end is removed.
        end = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else len(ids)
        keep = np.arange(end)
        if end > max_length:
            # The last token is the separator, which a cut row keeps.
            keep = np.append(keep[: max_length - 1], end - 1)
        types = np.zeros_like(ids) if example.token_type_ids is None else np.array(example.token_type_ids)
        if type_rows and (types.min() < 0 or types.max() >= type_rows):
            wrong = types[(types < 0) | (types >= type_rows)][0]
            raise DataError(f"{example.location}: the token type {wrong} is not one of the model's {type_rows}")
        row = Row(*(array[keep].astype(np.int32) for array in (ids, types, mask)))
        targets = _labels(example.label)
        if of_tokens and isinstance(example.label, tuple):
            targets = {"labels": np.array(example.label, dtype=np.int32)[keep]}
        features.append(Feature(example, (row,), targets))
    return features


def span_of(offsets: np.ndarray, begin: int, end: int, *, missing: int) -> tuple[int, int]:
    """Return the first and the last token of the characters ``[begin, end)`` of a text.

    Args:
        offsets: The characters of each token ``(seq, 2)``; -1 for tokens that are not of the text.
        begin: The first character.
        end: The character after the last.
        missing: The position to return twice where the window does not have all of these characters.
    """
    (of_text,) = np.nonzero(offsets[:, 0] >= 0)
    if not len(of_text) or begin < offsets[of_text[0], 0] or end > offsets[of_text[-1], 1]:
        return missing, missing
    # Offsets ascend, so both ends are found by bisection.
    first = np.searchsorted(offsets[of_text, 0], begin, side="right") - 1
    last = np.searchsorted(offsets[of_text, 1], end, side="left")
    return int(of_text[first]), int(of_text[last])


def best_contexts(of_text: Sequence[np.ndarray], stride: int) -> list[np.ndarray]:
    """Return for each window and token whether no other window has more text around this token.

    Where windows overlap, a token is judged in the window that has the most text on its shorter side; at equal sides
    the longer window is better. This is the rule of BERT's code for SQuAD (Devlin et al. 2018).

    Args:
        of_text: For each window ``(seq,)``, whether a token is of the text.
        stride: The tokens that a window repeats from the window before it.
    """
    sizes = [int(found.sum()) for found in of_text]
    if len(sizes) == 1:
        return [of_text[0].copy()]
    begins = [number * (sizes[0] - stride) for number in range(len(sizes))]
    scores = np.full((len(sizes), begins[-1] + sizes[-1]), -1.0)
    for score, begin, size in zip(scores, begins, sizes, strict=True):
        positions = np.arange(size)
        # The small share of the size decides ties between windows, as in BERT's code.
        score[begin : begin + size] = np.minimum(positions, size - 1 - positions) + 0.01 * size
    winner = scores.argmax(axis=0)
    best = [found.copy() for found in of_text]
    for number, (flags, begin, size) in enumerate(zip(best, begins, sizes, strict=True)):
        flags[flags] = winner[begin : begin + size] == number
    return best


def _row(encoding: Encoding) -> Row:
    return Row(np.array(encoding.ids, dtype=np.int32), np.array(encoding.type_ids, dtype=np.int32))


def _labels(label: object) -> dict[str, Any]:
    return {} if label is None else {"labels": label}


def _with_gaps(numbers: Sequence[int | None]) -> Ints:
    """Replace None by -1. NumPy reads None as NaN, which makes this fast."""
    floats = np.array(numbers, dtype=np.float64)
    return np.where(np.isnan(floats), -1, floats).astype(np.int32)


def _context_offsets(encoding: Encoding) -> Ints:
    """Return the characters ``(seq, 2)`` of the tokens of the second text, and -1 for all other tokens."""
    of_context = _with_gaps(encoding.sequence_ids) == 1
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    return np.where(of_context[:, np.newaxis], offsets, -1)


def _position_of(token_id: int | None, ids: Ints) -> int:
    return int(np.argmax(ids == token_id)) if token_id is not None else 0


def shortened(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Cut each text after ``max_tokens`` tokens; the tokenizer itself must not cut."""
    # A token has at least one character, and Unicode normalization makes at most 18 of one.
    if all(len(text) * 18 <= max_tokens for text in texts):
        return list(texts)
    cut = []
    for text, encoding in zip(texts, tokenizer.encode_batch(list(texts), add_special_tokens=False), strict=True):
        is_longer = len(encoding) > max_tokens
        cut.append(text[: encoding.offsets[max_tokens - 1][1]] if is_longer else text)
    return cut


# --- masked language modelling ---


@dataclass(frozen=True)
class Masking:
    """Settings of masked language modelling (Devlin et al. 2018).

    80 % of the chosen tokens become the mask token, 10 % a random token, and 10 % stay what they are. The choice
    depends on the seed and the index of the example alone, so it is the same in every order of batches.

    Args:
        seed: The seed of the choice.
        probability: The share of the ordinary tokens of each row that is to be predicted, but at least one token.
        only_mask: Turn all chosen tokens into the mask token.

    Raises:
        ConfigError: ``probability`` is not in (0, 1], or ``seed`` is negative.
    """

    seed: int = 0
    probability: float = 0.15
    only_mask: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.probability <= 1:
            problems.append(f"the probability must be above 0 and at most 1, not {self.probability}")
        if self.seed < 0:
            problems.append(f"the seed must be 0 or more, not {self.seed}")
        if problems:
            raise ConfigError(describe_problems("masking", problems))


def mask_tokens(feature: Feature, encoder: TextEncoder, masking: Masking) -> Feature:
    """Return the feature with masked tokens and the original ones as targets (:data:`IGNORED` elsewhere).

    Raises:
        ConfigError: The vocabulary has no mask token.
    """
    if encoder.mask_id is None:
        raise ConfigError("masked-lm needs a mask token, and the tokenizer has none")
    (row,) = feature.rows
    labels = np.full(len(row), IGNORED, dtype=np.int32)
    (ordinary,) = np.nonzero(~np.isin(row.ids, encoder.special_ids))
    if not len(ordinary):
        return replace(feature, targets={"labels": labels})
    # The order of the draws below must not change: evaluations and resume files depend on it.
    generator = np.random.default_rng((masking.seed, feature.example.index))
    count = max(1, round(masking.probability * len(ordinary)))
    chosen = generator.permutation(ordinary)[:count]
    draw = np.zeros(count) if masking.only_mask else generator.random(count)
    random_ids = generator.choice(encoder.ordinary_ids, count)
    ids = row.ids.copy()
    labels[chosen] = ids[chosen]
    ids[chosen] = np.select([draw < 0.8, draw < 0.9], [encoder.mask_id, random_ids], ids[chosen])
    return replace(feature, rows=(Row(ids, row.types, row.mask),), targets={"labels": labels})
