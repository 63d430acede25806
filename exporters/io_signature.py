"""Names, shapes and types of a file's inputs and outputs, as the ecosystem spells them, and example values for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["PAST_AND_SEQ", "Input", "Signature", "example_inputs", "texts"]

TEXTS = ("input_ids", "attention_mask", "token_type_ids")
PAST_AND_SEQ = "past_seq + seq"
"""The axis of what has been and what is new, in the attention mask of a file that takes a cache."""

SIZES: Mapping[str, int] = {"choices": 3, "past_seq": 5, "encoder_seq": 6, "candidate_seq": 7}
"""Lengths of the free axes other than batch and seq in examples; all differ, so that none stands for another."""


@dataclass(frozen=True)
class Input:
    """One input.

    Args:
        name: of the input.
        axes: a number for an axis that is fixed, a name for one that is free; equal names mean equal lengths.
        dtype: ``int64``, ``int32``, ``float32``, ``float16`` or ``bfloat16``.
    """

    name: str
    axes: tuple[str | int, ...] = ("batch", "seq")
    dtype: str = "int64"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a file.

    Args:
        inputs: in order.
        outputs: their names, in order.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(entry.name for entry in self.inputs)


def texts(*names: str) -> tuple[Input, ...]:
    """Inputs of tokens: int64 ``(batch, seq)``; all three of them when none is named."""
    return tuple(Input(name) for name in names or TEXTS)


def example_inputs(
    inputs: tuple[Input, ...],
    *,
    batch_size: int = 2,
    seq_len: int = 8,
    vocab_size: int = 32,
    padding: int = 0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random values: token ids, the last ``padding`` positions of every odd row masked out; normal numbers for floats.

    Args:
        inputs: of a signature.
        batch_size: of the axis ``batch``.
        seq_len: of the axis ``seq``; other free axes have the lengths of :data:`SIZES`.
        vocab_size: ids are below it.
        padding: how many positions at the end are masked out.
        seed: of the random numbers.

    Returns:
        A tensor of shape and type of each of ``inputs``. Ids are 0 where the mask of their own text is.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, int] = {**SIZES, "batch": batch_size, "seq": seq_len}
    sizes[PAST_AND_SEQ] = sizes["past_seq"] + seq_len

    def shape(entry: Input) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in entry.axes)

    def mask(of: Input) -> Tensor:
        visible = torch.ones(shape(of), dtype=torch.int64)
        if padding and visible.shape[-1] > padding:
            visible.flatten(0, -2)[1::2, -padding:] = 0
        return visible

    found = {}
    for entry in inputs:
        kind = getattr(torch, entry.dtype)
        if kind.is_floating_point:
            values = torch.randn(shape(entry), generator=generator)
        elif entry.name.endswith("_mask"):
            values = mask(entry)
        elif entry.name.endswith("token_type_ids"):
            values = torch.zeros(shape(entry), dtype=torch.int64)
        else:
            values = torch.randint(1, vocab_size, shape(entry), generator=generator) * mask(entry)
        found[entry.name] = values.to(kind)
    return found
