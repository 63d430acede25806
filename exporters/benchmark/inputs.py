"""Inputs of a given shape for any model, made from what the model declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from exporters.runners import TensorInfo

__all__ = ["make_inputs"]

VOCABULARY = 32
"""Upper bound of the ids: small enough for the vocabulary of a toy model."""

CHOICES = 2
"""Length of a free dimension that is neither batch nor sequence, as in (batch, choices, seq)."""


def make_inputs(infos: Sequence[TensorInfo], batch_size: int, seq_len: int) -> dict[str, NDArray[Any]]:
    """Make random inputs: random ids, every token attended to, one segment.

    A free dimension is recognized by its name. If the name says nothing, its position decides: the first is the batch,
    the last free one is the sequence.

    Args:
        infos: The inputs that the model declares.
        batch_size: Number of rows.
        seq_len: Number of tokens of each row.

    Returns:
        An array for each input, by name.

    Raises:
        ExportError: If a fixed dimension of the model does not allow this shape.
    """
    inputs = {info.name: _make_input(info, batch_size, seq_len) for info in infos}
    for info in infos:
        if info.dtype.kind not in "iu" or "position" in info.name.lower():  # positions may be one row for all
            continue
        if "past_seq + seq" in info.shape:
            continue
        shape = inputs[info.name].shape
        if len(shape) > 1 and (shape[0], shape[-1]) != (batch_size, seq_len):
            raise ExportError(
                f"the input {info.name} has the fixed shape {shape}, it cannot run {batch_size} x {seq_len}"
            )
    return inputs


def _make_input(info: TensorInfo, batch_size: int, seq_len: int) -> NDArray[Any]:
    shape = _resolve(info.shape, batch_size, seq_len)
    name = info.name.lower()
    if "mask" in name or info.dtype.kind == "b":
        return np.ones(shape, dtype=info.dtype)
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype=info.dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1], dtype=info.dtype), shape).copy()
    random = np.random.default_rng(0)
    values = random.normal(size=shape) if info.dtype.kind == "f" else random.integers(VOCABULARY, size=shape)
    return values.astype(info.dtype)


def _resolve(shape: Sequence[int | str | None], batch_size: int, seq_len: int) -> tuple[int, ...]:
    if "past_seq + seq" in shape:  # the mask over a cache, which is as long as the new text
        return tuple(2 * seq_len if size == "past_seq + seq" else batch_size for size in shape)
    free = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]

    def resolve(axis: int, size: int | str | None) -> int:
        if isinstance(size, int):
            return size
        if size is not None and "batch" in size.lower():
            return batch_size
        if size is not None and ("seq" in size.lower() or "length" in size.lower()):
            return seq_len
        if axis == 0:
            return batch_size
        return seq_len if axis == free[-1] else CHOICES

    return tuple(resolve(axis, size) for axis, size in enumerate(shape))
