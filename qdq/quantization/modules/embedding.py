"""A look-up table with quantized entries."""

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
    """``y = q_weight(W)[ids]``. Slot: ``weight`` on ``(entries, hidden)``."""

    slots: ClassVar[tuple[str, ...]] = ("weight",)
    weight_quantizer: Quantizer

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Share the table of an ``nn.Embedding``."""
        assert isinstance(module, nn.Embedding)
        with Uninitialized():
            wrapped = cls(module.num_embeddings, module.embedding_dim, module.padding_idx, device="meta")
        wrapped.max_norm, wrapped.norm_type = module.max_norm, module.norm_type
        wrapped.scale_grad_by_freq, wrapped.sparse = module.scale_grad_by_freq, module.sparse
        wrapped.weight = module.weight
        add_slots(wrapped, cls.slots, training=module.training)
        return wrapped

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """``(batch, seq)`` -> ``(batch, seq, hidden)``."""
        quantizer = self.weight_quantizer
        # The table is large and a call reads little of it. A graph that is being captured keeps it whole, for export.
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
