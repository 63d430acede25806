"""Features -> one batch of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdq.data.features import IGNORED, Feature
from qdq.data.kinds import ChoiceExample, Example
from qdq.data.padding import padded, padded_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from qdq.data.encoder import TextEncoder

__all__ = ["Batch", "collate"]


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


def collate(
    features: Sequence[Feature],
    encoder: TextEncoder,
    *,
    pad_to: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> Batch:
    """The batch of some features: rows filled up to the longest one, or as asked.

    Args:
        features: One at least; as many rows in each.
        encoder: Knows what to fill with, and the length that the model does not go beyond.
        pad_to: A fixed length.
        pad_to_multiple_of: Round the length up.
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
