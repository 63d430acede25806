"""Outputs of the models: dataclasses with upstream's field names that can be read like a tuple or a mapping."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, dataclass_transform

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Cache = tuple[Tensors, ...]
"""Per layer (key, value) or (key, value, cross key, cross value), each ``(batch, heads, length, head size)``."""


@dataclass_transform()
class Output:
    """Base class of all outputs. Subclasses become dataclasses that torch.export and torch.func can flatten.

    Fields that are None do not count: ``output[0]`` is the first field that was computed.
    """

    def __init_subclass__(cls) -> None:
        torch.export.register_dataclass(dataclass(cls))

    def keys(self) -> list[str]:
        """Return the names of the computed fields, in order."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def values(self) -> list[Any]:
        """Return the computed fields, in order."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Return pairs of name and value of the computed fields, in order."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the computed fields as a plain tuple."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


class BaseOutput(Output):
    """Output of an encoder: ``last_hidden_state`` ``(batch, seq, hidden)``, ``pooler_output`` ``(batch, hidden)``."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


class TaskOutput(Output):
    """Output of a model with a head. Each task computes the fields that upstream computes.

    ``logits`` are ``(batch, labels)`` or ``(batch, seq, labels)``, start and end logits ``(batch, seq)``, prediction
    logits ``(batch, seq, vocab)``, logits of the relation or the order (``sop``) of two sentences ``(batch, 2)``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    sop_logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
