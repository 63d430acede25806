"""Make batches of tensors from examples; rows of similar length go together, so that a batch has little padding."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from qdq.data.columns import check_task
from qdq.data.example_types import ChoiceExample
from qdq.data.features import IGNORED, Feature, Masking
from qdq.data.featurizer import Featurizer, max_question
from qdq.data.tokenizer import UnknownTokens
from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from qdq.data.example_types import Example
    from qdq.data.tokenizer import TextEncoder

__all__ = ["Batch", "Masking", "collate", "in_order", "make_batches", "padded"]


T = TypeVar("T")

#: The default longest sequences, those of the papers: 384 with a question and 512 for all other tasks.
_MAX_LENGTH = 512
_MAX_LENGTH_WITH_QUESTION = 384
_STRIDE = 128

#: Examples that are tokenized at a time: enough to occupy all cores, few enough to hold in memory.
_CHUNK_EXAMPLES = 256


@dataclass(frozen=True)
class _BatchSettings:
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
    """Yield the batches of examples. Memory holds one window of examples, however many there are.

    When the examples are used up and the vocabulary knows less than half of their text, a warning is logged.

    Args:
        examples: From :func:`qdq.data.examples.read_examples`, or made in Python.
        encoder: From :func:`qdq.data.tokenizer.load_encoder`.
        task: The task that the examples were read for.
        batch_size: The number of rows in a batch; the last batch of a window may have fewer.
        max_length: The largest number of tokens in a row, special ones included. Longer rows are cut at the end of
            their longer text; the context of a question continues in further windows. The default is 384 for questions
            and 512 for other tasks, or the longest sequence of the model or the tokenizer if that is shorter.
        stride: The tokens that a window of a context repeats; by default 128, or a third of ``max_length``.
        pad_to: A fixed length of all batches, instead of the length of the longest row.
        pad_to_multiple_of: Round the length of a batch up to a multiple of this.
        window: The number of examples that are held and sorted by length; None keeps the order of the examples.
        shuffle_seed: Shuffle the batches of a window, and rows of equal length, with this seed, for training.
        masking: The settings of masked-lm.

    Raises:
        ConfigError: A setting does not fit the other settings, the model or the task.
        DataError: While iterating: an example is not of the kind that the task takes, or it has a token that the model
            has no vector for.
    """
    check_task(task)
    is_question = task == "question-answering"
    if max_length is None:
        usual = _MAX_LENGTH_WITH_QUESTION if is_question else _MAX_LENGTH
        limits = (encoder.max_length, encoder.usual_length, pad_to)
        max_length = min([usual, *(limit for limit in limits if limit)])
    if stride is None:
        stride = min(_STRIDE, max_length // 3)
    settings = _BatchSettings(
        batch_size, max_length, stride, pad_to, pad_to_multiple_of, window, shuffle_seed, masking or Masking()
    )
    _check(settings, encoder, is_question=is_question)
    # The examples of a file know its name.
    return _batches(iter(examples), encoder, task, settings, source=str(getattr(examples, "name", "the data")))


def in_order(results: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Yield values in the order of their indices 0, 1, 2, ...

    Args:
        results: Pairs ``(index, value)`` in any order; a value that comes early is held in memory.

    Raises:
        ValueError: An index is missing, or comes twice.
    """
    waiting: list[tuple[int, int, T]] = []
    due = 0
    for count, (index, value) in enumerate(results):
        # The count breaks ties, so that values themselves are never compared.
        heapq.heappush(waiting, (index, count, value))
        while waiting and waiting[0][0] == due:
            yield heapq.heappop(waiting)[2]
            due += 1
    if waiting:
        raise ValueError(f"the value of index {due} is missing, or a value came twice")


def _check(settings: _BatchSettings, encoder: TextEncoder, *, is_question: bool) -> None:
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


def _batches(
    examples: Iterator[Example], encoder: TextEncoder, task: str, settings: _BatchSettings, *, source: str
) -> Iterator[Batch]:
    featurize = Featurizer(
        encoder,
        task,
        max_length=settings.max_length,
        stride=settings.stride,
        masking=settings.masking,
        source=source,
    )
    unknown = UnknownTokens(encoder.tokenizer)
    known_specials = encoder.special_ids[encoder.special_ids != encoder.unk_id]
    generator = np.random.default_rng(settings.shuffle_seed) if settings.shuffle_seed is not None else None
    for features in _groups(examples, featurize, settings, generator):
        batch = collate(features, encoder, pad_to=settings.pad_to, pad_to_multiple_of=settings.pad_to_multiple_of)
        # Padding and special tokens are not of the text; the unknown token is special, too, but must count.
        ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
        unknown.count(ids, (mask == 0) | np.isin(ids, known_specials))
        yield batch
    unknown.warn()
    featurize.warn()


def _groups(
    examples: Iterator[Example],
    featurize: Featurizer,
    settings: _BatchSettings,
    generator: np.random.Generator | None,
) -> Iterator[list[Feature]]:
    """Yield the features of each batch."""
    size = settings.batch_size
    rest: list[Feature] = []
    while True:
        features = rest
        # Round up to whole batches, so that only the last batch of all is smaller where each example is one row.
        wanted = size if settings.window is None else -(-settings.window // size) * size
        while wanted > 0 and (chunk := list(islice(examples, min(wanted, _CHUNK_EXAMPLES)))):
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


def _cut(
    features: list[Feature], settings: _BatchSettings, generator: np.random.Generator | None
) -> list[list[Feature]]:
    """Divide features into batches of equally many choices, sorted by length if there is a window."""
    if generator is not None:
        features = [features[row] for row in generator.permutation(len(features))]
    if settings.window is not None:
        # The sort is stable: a shuffle before it decides the order of rows of equal length.
        features = sorted(features, key=lambda feature: (len(feature.rows), feature.length))
    groups = []
    for _, same in groupby(features, key=lambda feature: len(feature.rows)):
        while group := list(islice(same, settings.batch_size)):
            groups.append(group)
    if generator is not None:
        groups = [groups[row] for row in generator.permutation(len(groups))]
    return groups


# --- one batch ---


class Batch(dict[str, torch.Tensor]):
    """The arguments of a model's forward by name, so that ``model(**batch)`` works.

    1. ``input_ids``, ``attention_mask`` and ``token_type_ids``: int64 ``(batch, seq)``, or ``(batch, choices, seq)``
       for multiple choice.
    2. ``labels``, if every example has one. Classes and choices: int64 ``(batch,)``. Scores: float32 ``(batch,)``.
       Several labels: float32 ``(batch, labels)``. Tokens: int64 ``(batch, seq)``, -100 where none counts.
    3. ``start_positions`` and ``end_positions``: int64 ``(batch,)``. Where there is no answer, both are the position of
       the first token (``cls``).

    Attributes:
        index: The index of each row's example, int64 ``(batch,)``.
        examples: The example of each row.
        lengths: The number of tokens of each row, or of its longest choice, without padding, int64 ``(batch,)``.
        offsets: For question answering, the characters ``[begin, end)`` of the context, int64 ``(batch, seq, 2)``; -1
            for tokens that are not of the context.
        window_index: For question answering, which window of its example a row is, from 0, int64 ``(batch,)``.
        window_count: For question answering, how many windows the example has, int64 ``(batch,)``.
        is_best_context: For question answering, whether no other window has more context around this token, bool
            ``(batch, seq)``.
        word_ids: For token classification, the number of a word at its first token, and -1 for other tokens, int64
            ``(batch, seq)``. Words that were cut off, or that text cleaning left empty, have no token.
    """

    _TARGETS = ("labels", "start_positions", "end_positions")

    def __init__(self, tensors: dict[str, Tensor], features: Sequence[Feature]) -> None:
        super().__init__(tensors)
        self.examples: list[Example] = [feature.example for feature in features]
        self.index = torch.tensor([example.index for example in self.examples])
        self.lengths = torch.tensor([feature.length for feature in features])
        length = tensors["input_ids"].shape[-1]
        self.offsets = _stacked([feature.offsets for feature in features], length, -1)
        self.word_ids = _stacked([feature.word_ids for feature in features], length, -1)
        best = _stacked([feature.best_context for feature in features], length, 0)
        self.is_best_context = None if best is None else best.bool()
        is_windows = self.offsets is not None
        self.window_index = torch.tensor([feature.window_index for feature in features]) if is_windows else None
        self.window_count = torch.tensor([feature.window_count for feature in features]) if is_windows else None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The batch without labels and positions."""
        return {name: tensor for name, tensor in self.items() if name not in self._TARGETS}


def collate(
    features: Sequence[Feature],
    encoder: TextEncoder,
    *,
    pad_to: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> Batch:
    """Make one batch of features, with rows padded to the longest one.

    Args:
        features: At least one feature; all of them have the same number of rows.
        encoder: Knows the padding token and the longest sequence of the model.
        pad_to: Pad to this length instead.
        pad_to_multiple_of: Round the length up to a multiple of this, but not beyond the model's longest sequence.
    """
    length = padded_length(
        max(feature.length for feature in features),
        pad_to=pad_to,
        multiple_of=pad_to_multiple_of,
        limit=encoder.max_length,
    )
    rows = [row for feature in features for row in feature.rows]
    is_choice = isinstance(features[0].example, ChoiceExample)
    shape = (len(features), len(features[0].rows), length) if is_choice else (len(features), length)
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(length) < lengths[:, np.newaxis]).astype(np.int64)
    for mask_row, row in zip(mask, rows, strict=True):
        if row.mask is not None:
            mask_row[: len(row)] = row.mask
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
    # Classes must be int64 for cross entropy, and scores float32 for the mean squared error.
    is_whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if is_whole else torch.float32)


def _stacked(arrays: Sequence[np.ndarray | None], length: int, fill: int) -> Tensor | None:
    """Return the arrays as one padded tensor, or None if some feature has none."""
    found = [array for array in arrays if array is not None]
    return torch.from_numpy(padded(found, length, fill)) if len(found) == len(arrays) else None


def padded(rows: Sequence[Sequence[int] | np.ndarray], length: int, fill: int) -> np.ndarray:
    """Return an int64 array ``(rows, length, ...)`` of rows that are followed by ``fill``."""
    inner = np.shape(rows[0])[1:] if len(rows) else ()
    array = np.full((len(rows), length, *inner), fill, dtype=np.int64)
    for filled, row in zip(array, rows, strict=True):
        filled[: len(row)] = row
    return array


def padded_length(longest: int, *, pad_to: int | None, multiple_of: int | None, limit: int | None) -> int:
    """Return the length of a batch: ``pad_to``, or the longest row rounded up to a multiple within ``limit``."""
    if pad_to is not None:
        return pad_to
    if multiple_of is None:
        return longest
    rounded = -(-longest // multiple_of) * multiple_of
    return max(longest, min(rounded, limit)) if limit is not None else rounded
