"""Names, shapes and types of the inputs and outputs of an exported file, and example values for the inputs.

The names are those that the ecosystem uses: ``input_ids``, ``attention_mask``, ``past_key_values.0.key`` and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["PAST_AND_SEQ", "IOSignature", "InputSpec", "example_inputs", "token_inputs"]

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PAST_AND_SEQ = "past_seq + seq"
"""Name of the axis that spans the cache and the new tokens: the attention mask of a file that takes a cache has it."""

SIZES: Mapping[str, int] = {"choices": 3, "past_seq": 5, "encoder_seq": 6, "candidate_seq": 7}
"""Lengths of the free axes other than batch and seq in examples. All differ, so that a mix-up of two axes is seen."""


@dataclass(frozen=True)
class InputSpec:
    """Describe one input.

    Args:
        name: Name of the input.
        axes: A number for a fixed axis, a name for a free one. Axes with equal names have equal lengths.
        dtype: ``int64``, ``int32``, ``float32``, ``float16`` or ``bfloat16``.
    """

    name: str
    axes: tuple[str | int, ...] = ("batch", "seq")
    dtype: str = "int64"


@dataclass(frozen=True)
class IOSignature:
    """Describe the inputs and outputs of a file.

    Args:
        inputs: The inputs, in order.
        outputs: Names of the outputs, in order.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(entry.name for entry in self.inputs)


def token_inputs(*names: str) -> tuple[InputSpec, ...]:
    """Return the named token inputs, int64 ``(batch, seq)``; all three of them if no name is given."""
    return tuple(InputSpec(name) for name in names or TOKEN_INPUTS)


def example_inputs(
    inputs: tuple[InputSpec, ...],
    *,
    batch_size: int = 2,
    seq_len: int = 8,
    vocab_size: int = 32,
    padding: int = 0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return random values for ``inputs``.

    Ids are random tokens, floats are normally distributed. Every second row is padded.

    Args:
        inputs: The inputs of a signature.
        batch_size: Length of the axis ``batch``.
        seq_len: Length of the axis ``seq``. The other free axes have the lengths of :data:`SIZES`.
        vocab_size: Upper bound of the ids, exclusive.
        padding: Number of positions at the end of every second row that the mask hides.
        seed: Seed of the random numbers.

    Returns:
        A tensor for each of ``inputs``, by name. Ids are 0 wherever the mask of their own text is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, int] = {**SIZES, "batch": batch_size, "seq": seq_len}
    sizes[PAST_AND_SEQ] = sizes["past_seq"] + seq_len

    def shape(entry: InputSpec) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in entry.axes)

    def mask(of: InputSpec) -> Tensor:
        visible = torch.ones(shape(of), dtype=torch.int64)
        if padding and visible.shape[-1] > padding:
            visible.flatten(0, -2)[1::2, -padding:] = 0
        return visible

    found = {}
    for entry in inputs:
        dtype = getattr(torch, entry.dtype)
        if dtype.is_floating_point:
            values = torch.randn(shape(entry), generator=generator)
        elif entry.name.endswith("_mask"):
            values = mask(entry)
        elif entry.name.endswith("token_type_ids"):
            values = torch.zeros(shape(entry), dtype=torch.int64)
        else:
            values = torch.randint(1, vocab_size, shape(entry), generator=generator) * mask(entry)
        found[entry.name] = values.to(dtype)
    return found
