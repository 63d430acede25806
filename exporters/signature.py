"""Names and shapes of a model's inputs and outputs, as the ecosystem spells them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qdq.errors import DataError, ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Signature", "example_inputs", "signature_of"]

# In the order in which every consumer lists them.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Signature:
    """Input and output names; every input is int64 ``(batch, seq)``.

    Args:
        inputs: in order.
        outputs: in order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def example_inputs(
    names: tuple[str, ...],
    *,
    batch_size: int = 2,
    seq_len: int = 8,
    vocab_size: int = 32,
    padding: int = 0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random token ids, the last ``padding`` positions of every odd row masked out.

    Returns:
        int64 tensors ``(batch_size, seq_len)`` for each of ``names``.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch_size, seq_len, dtype=torch.int64)
    if padding:
        mask[1::2, -padding:] = 0
    ids = torch.randint(1, vocab_size, mask.shape, generator=generator)
    known = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: known[name] for name in names}


def signature_of(model: nn.Module) -> Signature:
    """Inputs that the model accepts, and the outputs that it computes from them without labels.

    Raises:
        ExportError: for a model that needs other inputs, multiple choice for instance.
    """
    accepted = inspect.signature(model.forward).parameters
    inputs = tuple(name for name in _INPUTS if name in accepted)
    vocab_size = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    try:
        with torch.inference_mode():
            output = model(**example_inputs(inputs, vocab_size=vocab_size))
    except DataError as error:
        task = getattr(model, "task", type(model).__name__)
        raise ExportError(
            f"the task {task!r} cannot be exported: a file has the inputs {', '.join(inputs)} (batch, seq), but {error}"
        ) from error
    return Signature(inputs, tuple(name for name, value in output.items() if isinstance(value, torch.Tensor)))
