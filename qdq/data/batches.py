"""Examples -> batches of tensors, grouped by length within a window, so that little of a batch is padding."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from qdq.data.columns import check_task
from qdq.data.features import (
    IGNORED,
    Feature,
    choice_features,
    ids_features,
    question_features,
    text_features,
    token_features,
)
from qdq.data.kinds import ChoiceExample, Example, IdsExample, QuestionExample, TextExample, TokenExample
from qdq.data.masking import Masking, mask_tokens
from qdq.data.padding import padded, padded_length
from qdq.data.truncation import check_room, for_words, truncating
from qdq.data.unknown import UnknownTokens
from qdq.errors import ConfigError, DataError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from qdq.data.encoder import TextEncoder

__all__ = ["Batch", "Masking", "in_order", "make_batches"]

T = TypeVar("T")

#: The longest sequences unless asked otherwise, as in the papers: 384 with a question, 512 else.
_MAX_LENGTH = 512
_MAX_LENGTH_WITH_QUESTION = 384
_STRIDE = 128

#: Examples that are tokenized at a time: enough for all cores, little enough to hold.
_CHUNK = 256


class Batch(dict[str, torch.Tensor]):
    """What a model's forward takes, under upstream's names; ``model(**batch)`` works.

    1. ``input_ids``, ``attention_mask``, ``token_type_ids``: int64 ``(batch, seq)``; of multiple choices
       ``(batch, choices, seq)``.
    2. ``labels``, where every example has one: int64 ``(batch,)`` of classes and choices, float32 ``(batch,)`` of
       scores and ``(batch, labels)`` of several labels; int64 ``(batch, seq)`` of tokens, -100 where none counts.
    3. ``start_positions`` and ``end_positions``: int64 ``(batch,)``; where there is no answer, the place of the first
       token (``cls``).

    Attributes:
        index: int64 ``(batch,)``, the index of each row's example.
        examples: The example of each row.
        lengths: int64 ``(batch,)``, tokens of a row (of its longest choice) without padding.
        offsets: Of question answering, int64 ``(batch, seq, 2)``: characters ``[begin, end)`` of the context, -1 for
            tokens that are not of the context.
        part: Of question answering, int64 ``(batch,)``: which window of its example a row is, from 0.
        parts: Of question answering, int64 ``(batch,)``: how many windows the example has.
        is_best_context: Of question answering, bool ``(batch, seq)``: the context's token has in this window more
            context around it than in any other.
        word_ids: Of token classification, int64 ``(batch, seq)``: the number of a word at its first piece, else -1. A
            word that was cut off, or of which cleaning left nothing, stands nowhere.
    """

    _TARGETS = ("labels", "start_positions", "end_positions")

    def __init__(self, tensors: dict[str, Tensor], features: Sequence[Feature]) -> None:
        super().__init__(tensors)
        self.examples: list[Example] = [feature.example for feature in features]
        self.index = torch.tensor([example.index for example in self.examples])
        self.lengths = torch.tensor([feature.length for feature in features])
        length = tensors["input_ids"].shape[-1]
        self.offsets = _together([feature.offsets for feature in features], length, -1)
        self.word_ids = _together([feature.word_ids for feature in features], length, -1)
        best = _together([feature.best_context for feature in features], length, 0)
        self.is_best_context = None if best is None else best.bool()
        is_windows = self.offsets is not None
        self.part = torch.tensor([feature.part for feature in features]) if is_windows else None
        self.parts = torch.tensor([feature.parts for feature in features]) if is_windows else None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The batch without labels and positions."""
        return {name: tensor for name, tensor in self.items() if name not in self._TARGETS}


@dataclass(frozen=True)
class _Settings:
    batch_size: int
    max_length: int
    stride: int
    pad_to: int | None
    pad_to_multiple_of: int | None
    window: int | None
    shuffle_seed: int | None
    masking: Masking


def make_batches(
    examples: Iterable[Example],
    encoder: TextEncoder,
    task: str,
    *,
    batch_size: int,
    max_length: int | None = None,
    stride: int | None = None,
    pad_to: int | None = None,
    pad_to_multiple_of: int | None = None,
    window: int | None = 4096,
    shuffle_seed: int | None = None,
    masking: Masking | None = None,
) -> Iterator[Batch]:
    """Batches of examples. Memory is that of one window, however many examples there are.

    Text that is mostly unknown to the vocabulary is logged as a warning when the examples are used up.

    Args:
        examples: From :func:`qdq.data.examples.read_examples`, or made by hand.
        encoder: From :func:`qdq.data.encoder.load_encoder`.
        task: What the examples were read for.
        batch_size: Rows of a batch; the last of a window may have fewer.
        max_length: Most tokens of a row, special ones included. What is longer is cut at the end of its longer text; a
            context with a question goes on in further windows. Not given: 384 with a question, 512 else, or what
            the model has positions for.
        stride: Tokens that a window of a context repeats; 128, or a third of ``max_length``.
        pad_to: A fixed length of all batches, instead of that of the longest row.
        pad_to_multiple_of: Round the length of a batch up.
        window: Examples that are held and sorted by length; None keeps the order.
        shuffle_seed: Take the batches of a window in random order, and rows of the same length too: for training.
        masking: Of masked-lm.

    Raises:
        ConfigError: A setting does not fit the others, the model, or the task.
        DataError: While iterating: an example is of another kind than the task's.
    """
    check_task(task)
    is_question = task == "question-answering"
    if max_length is None:
        usual = _MAX_LENGTH_WITH_QUESTION if is_question else _MAX_LENGTH
        max_length = min(usual, encoder.max_length or usual, pad_to or usual)
    if stride is None:
        stride = min(_STRIDE, max_length // 3)
    settings = _Settings(
        batch_size, max_length, stride, pad_to, pad_to_multiple_of, window, shuffle_seed, masking or Masking()
    )
    _check(settings, encoder, is_question=is_question)
    return _batches(iter(examples), encoder, task, settings)


def in_order(results: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Values by their index 0, 1, 2, ..., out of ``(index, value)`` in another order; holds what comes too early."""
    waiting: list[tuple[int, int, T]] = []
    due = 0
    for count, (index, value) in enumerate(results):
        heapq.heappush(waiting, (index, count, value))
        while waiting and waiting[0][0] == due:
            yield heapq.heappop(waiting)[2]
            due += 1
    if waiting:
        raise ValueError(f"nothing came for index {due}, or something twice")


def _check(settings: _Settings, encoder: TextEncoder, *, is_question: bool) -> None:
    faults = [
        f"{name} must be at least 1, not {value}"
        for name in ("batch_size", "pad_to", "pad_to_multiple_of", "window")
        if (value := getattr(settings, name)) is not None and value < 1
    ]
    length, stride = settings.max_length, settings.stride
    if length < 3:
        faults.append(f"max_length must be at least 3 (a token between two special ones), not {length}")
    if encoder.max_length is not None and length > encoder.max_length:
        faults.append(f"max_length {length} is more than the model's {encoder.max_length} positions")
    if encoder.max_length is not None and (settings.pad_to or 0) > encoder.max_length:
        faults.append(f"pad_to {settings.pad_to} is more than the model's {encoder.max_length} positions")
    if settings.pad_to is not None and settings.pad_to < length:
        faults.append(f"pad_to must be at least max_length ({length}), not {settings.pad_to}")
    if is_question and (stride < 0 or _max_question(encoder, length, stride) < 1):
        faults.append(f"stride {stride} leaves a question no room in max_length {length}; take at most a third of it")
    if faults:
        raise ConfigError(describe_faults("batches", faults))


def _max_question(encoder: TextEncoder, max_length: int, stride: int) -> int:
    """Each window has to move on by at least as much as it repeats."""
    return max_length - encoder.tokenizer.num_special_tokens_to_add(True) - 2 * max(stride, 1)


def _batches(examples: Iterator[Example], encoder: TextEncoder, task: str, settings: _Settings) -> Iterator[Batch]:
    featurize = _Featurizer(encoder, task, settings)
    unknown = UnknownTokens(encoder.tokenizer)
    known_specials = encoder.special_ids[encoder.special_ids != encoder.unk_id]
    generator = np.random.default_rng(settings.shuffle_seed) if settings.shuffle_seed is not None else None
    for features in _groups(examples, featurize, settings, generator):
        batch = _collate(features, encoder, settings)
        ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
        unknown.count(ids, (mask == 0) | np.isin(ids, known_specials))
        yield batch
    unknown.warn()


def _groups(
    examples: Iterator[Example],
    featurize: _Featurizer,
    settings: _Settings,
    generator: np.random.Generator | None,
) -> Iterator[list[Feature]]:
    """The features of each batch."""
    size = settings.batch_size
    rest: list[Feature] = []
    while True:
        features = rest
        # full batches where an example is a row
        wanted = size if settings.window is None else -(-settings.window // size) * size
        while wanted > 0 and (chunk := list(islice(examples, min(wanted, _CHUNK)))):
            features += featurize(chunk)
            wanted -= len(chunk)
        if not features:
            return
        if settings.window is None and wanted == 0:
            cut = len(features) // size * size
            features, rest = features[:cut], features[cut:]
        else:
            rest = []
        yield from _cut(features, settings, generator)


def _cut(features: list[Feature], settings: _Settings, generator: np.random.Generator | None) -> list[list[Feature]]:
    """Batches of features: sorted by length if there is a window; rows of one batch have as many choices each."""
    if generator is not None:
        features = [features[place] for place in generator.permutation(len(features))]
    if settings.window is not None:
        features = sorted(features, key=lambda feature: (len(feature.rows), feature.length))
    groups = []
    for _, same in groupby(features, key=lambda feature: len(feature.rows)):
        while group := list(islice(same, settings.batch_size)):
            groups.append(group)
    if generator is not None:
        groups = [groups[place] for place in generator.permutation(len(groups))]
    return groups


class _Featurizer:
    """Features of examples, whatever their kind; tokenizers that cut are made once."""

    def __init__(self, encoder: TextEncoder, task: str, settings: _Settings) -> None:
        self._encoder = encoder
        self._task = task
        self._settings = settings
        length = settings.max_length
        if task == "question-answering":
            check_room(encoder.tokenizer, length, is_pair=True)
            cutting = truncating(encoder.tokenizer, length, strategy="only_second", stride=settings.stride)
        elif task == "token-classification":
            cutting = truncating(for_words(encoder.tokenizer), length)
        else:
            cutting = truncating(encoder.tokenizer, length)
        self._tokenizer = cutting

    def __call__(self, examples: list[Example]) -> list[Feature]:
        """Their features, in their order."""
        features: list[Feature] = []
        for kind, group in groupby(examples, key=type):
            features += self._features(kind, list(group))
        return features

    def _features(self, kind: type[Example], examples: list[Any]) -> list[Feature]:
        length, task = self._settings.max_length, self._task
        if kind is IdsExample and task not in {"question-answering", "multiple-choice"}:
            of_tokens = task in {"token-classification", "masked-lm"}
            vocab_size = self._encoder.vocab_size
            return self._masked(ids_features(examples, max_length=length, vocab_size=vocab_size, of_tokens=of_tokens))
        if kind is not _KINDS.get(task, TextExample):
            raise DataError(f"{examples[0].place}: {task} wants examples of another kind than {kind.__name__}")
        if kind is QuestionExample:
            return question_features(
                examples,
                self._tokenizer,
                uncut=self._encoder.tokenizer,
                max_question=_max_question(self._encoder, length, self._settings.stride),
                stride=self._settings.stride,
                cls_id=self._encoder.cls_id,
            )
        if kind is TokenExample:
            return token_features(examples, self._tokenizer)
        is_pair = kind is ChoiceExample or any(example.text_pair is not None for example in examples)
        check_room(self._tokenizer, length, is_pair=is_pair)
        if kind is ChoiceExample:
            return choice_features(examples, self._tokenizer)
        return self._masked(text_features(examples, self._tokenizer))

    def _masked(self, features: list[Feature]) -> list[Feature]:
        if self._task != "masked-lm":
            return features
        masking = self._settings.masking
        return [f if f.targets else mask_tokens(f, self._encoder, masking) for f in features]


_KINDS: dict[str, type[Example]] = {
    "question-answering": QuestionExample,
    "token-classification": TokenExample,
    "multiple-choice": ChoiceExample,
}


def _collate(features: list[Feature], encoder: TextEncoder, settings: _Settings) -> Batch:
    length = padded_length(
        max(feature.length for feature in features),
        pad_to=settings.pad_to,
        multiple_of=settings.pad_to_multiple_of,
        limit=encoder.max_length,
    )
    rows = [row for feature in features for row in feature.rows]
    is_choice = isinstance(features[0].example, ChoiceExample)
    shape = (len(features), len(features[0].rows), length) if is_choice else (len(features), length)
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(length) < lengths[:, np.newaxis]).astype(np.int64)
    for place, row in zip(mask, rows, strict=True):
        if row.mask is not None:
            place[: len(row)] = row.mask
    arrays = {
        "input_ids": padded([row.ids for row in rows], length, encoder.pad_id),
        "attention_mask": mask,
        "token_type_ids": padded([row.types for row in rows], length, 0),
    }
    tensors = {name: torch.from_numpy(array.reshape(shape)) for name, array in arrays.items()}
    for name in features[0].targets:
        values = [feature.targets.get(name) for feature in features]
        if all(value is not None for value in values):
            tensors[name] = _targets(values, length)
    return Batch(tensors, features)


def _targets(values: list[Any], length: int) -> Tensor:
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(padded(values, length, IGNORED))
    is_whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if is_whole else torch.float32)


def _together(arrays: Sequence[np.ndarray | None], length: int, fill: int) -> Tensor | None:
    """The arrays as one tensor; None where there are none."""
    found = [array for array in arrays if array is not None]
    return torch.from_numpy(padded(found, length, fill)) if len(found) == len(arrays) else None
