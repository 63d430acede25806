"""Examples -> batches of tensors, grouped by length within a window, so that little of a batch is padding."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from qdq.data.batch import Batch, collate
from qdq.data.columns import check_task
from qdq.data.featurizer import Featurizer, max_question
from qdq.data.masking import Masking
from qdq.data.unknown import UnknownTokens
from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qdq.data.encoder import TextEncoder
    from qdq.data.features import Feature
    from qdq.data.kinds import Example

__all__ = ["Batch", "Masking", "in_order", "make_batches"]

T = TypeVar("T")

#: The longest sequences unless asked otherwise, as in the papers: 384 with a question, 512 else.
_MAX_LENGTH = 512
_MAX_LENGTH_WITH_QUESTION = 384
_STRIDE = 128

#: Examples that are tokenized at a time: enough for all cores, little enough to hold.
_CHUNK = 256


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
    problems = [
        f"{name} must be at least 1, not {value}"
        for name in ("batch_size", "pad_to", "pad_to_multiple_of", "window")
        if (value := getattr(settings, name)) is not None and value < 1
    ]
    length, stride = settings.max_length, settings.stride
    if length < 3:
        problems.append(f"max_length must be at least 3 (a token between two special ones), not {length}")
    if encoder.max_length is not None and length > encoder.max_length:
        problems.append(f"max_length {length} is more than the model's {encoder.max_length} positions")
    if encoder.max_length is not None and (settings.pad_to or 0) > encoder.max_length:
        problems.append(f"pad_to {settings.pad_to} is more than the model's {encoder.max_length} positions")
    if settings.pad_to is not None and settings.pad_to < length:
        problems.append(f"pad_to must be at least max_length ({length}), not {settings.pad_to}")
    if is_question and (stride < 0 or max_question(encoder, length, stride) < 1):
        problems.append(
            f"stride {stride} leaves a question no room in max_length {length}; a third of it leaves enough"
        )
    if problems:
        raise ConfigError(describe_problems("batches", problems))


def _batches(examples: Iterator[Example], encoder: TextEncoder, task: str, settings: _Settings) -> Iterator[Batch]:
    featurize = Featurizer(
        encoder, task, max_length=settings.max_length, stride=settings.stride, masking=settings.masking
    )
    unknown = UnknownTokens(encoder.tokenizer)
    known_specials = encoder.special_ids[encoder.special_ids != encoder.unk_id]
    generator = np.random.default_rng(settings.shuffle_seed) if settings.shuffle_seed is not None else None
    for features in _groups(examples, featurize, settings, generator):
        batch = collate(features, encoder, pad_to=settings.pad_to, pad_to_multiple_of=settings.pad_to_multiple_of)
        ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
        unknown.count(ids, (mask == 0) | np.isin(ids, known_specials))
        yield batch
    unknown.warn()
    featurize.warn()


def _groups(
    examples: Iterator[Example],
    featurize: Featurizer,
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
