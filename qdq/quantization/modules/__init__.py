"""Wrapped modules: float modules with quantizers in named slots.

``WRAPPED`` is the registry. It is looked up by exact type, because a subclass of ``nn.Linear`` may compute something
else, and a wrapped module must not be wrapped again. To add one, write the class in this package and add a line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from qdq.models.ops import Add, MatMul
from qdq.quantization.modules.add import QuantAdd
from qdq.quantization.modules.embedding import QuantEmbedding
from qdq.quantization.modules.linear import QuantLinear
from qdq.quantization.modules.matmul import QuantMatMul
from qdq.quantization.modules.weight import set_weight_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.quantization.modules.wrapped import Wrapped

__all__ = ["WRAPPED", "QuantAdd", "QuantEmbedding", "QuantLinear", "QuantMatMul", "set_weight_scale"]

WRAPPED: Mapping[type[nn.Module], type[Wrapped]] = {
    nn.Linear: QuantLinear,
    nn.Embedding: QuantEmbedding,
    MatMul: QuantMatMul,
    Add: QuantAdd,
}
