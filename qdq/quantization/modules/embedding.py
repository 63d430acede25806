"""An embedding table with quantized entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from qdq.models.uninitialized import Uninitialized
from qdq.quantization.modules.wrapped import add_slots
from qdq.quantization.quantizer import Mode

if TYPE_CHECKING:
    from qdq.quantization.quantizer import Quantizer

__all__ = ["QuantEmbedding"]


class QuantEmbedding(nn.Embedding):
    """``y = q_weight(W)[ids]``. Slot: ``weight`` for ``(entries, hidden)``."""

    slots: ClassVar[tuple[str, ...]] = ("weight",)
    weight_quantizer: Quantizer

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Return a wrapped embedding that shares the table."""
        assert isinstance(module, nn.Embedding)
        with Uninitialized():
            wrapped = cls(module.num_embeddings, module.embedding_dim, module.padding_idx, device="meta")
        wrapped.max_norm, wrapped.norm_type = module.max_norm, module.norm_type
        wrapped.scale_grad_by_freq, wrapped.sparse = module.scale_grad_by_freq, module.sparse
        wrapped.weight = module.weight
        add_slots(wrapped, cls.slots, training=module.training)
        return wrapped

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return ``(batch, seq, hidden)`` for ids ``(batch, seq)``."""
        quantizer = self.weight_quantizer
        # A call reads only a few rows of a large table, so quantize those. An exported graph needs the whole table.
        by_row = quantizer.mode is Mode.QUANTIZE and not torch.compiler.is_compiling() and self.max_norm is None
        rows = F.embedding(
            input,
            self.weight if by_row else quantizer(self.weight),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
        return quantizer.look_up(self.weight, input, rows) if by_row else rows
