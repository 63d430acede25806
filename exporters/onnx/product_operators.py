"""The operators that multiply matrices, by the names that files and runtimes give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTENTION",
    "ATTENTION_WITH_WEIGHTS",
    "CONVOLUTIONS",
    "FLOAT_PRODUCTS",
    "INTEGER_OPERATORS",
    "INTEGER_PRODUCTS",
    "PRODUCTS",
    "WEIGHT_ONLY",
]

FLOAT_PRODUCTS = frozenset(
    {
        *("MatMul", "Gemm", "Conv", "Einsum"),
        *("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", "FusedGemm", "GemmFastGelu"),
        *("FusedConv", "NhwcFusedConv"),
    }
)
"""Products of two floats, or of what DequantizeLinear gives."""

INTEGER_PRODUCTS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger"), (0, 1)),
    **dict.fromkeys(("QLinearMatMul", "QGemm", "QLinearConv"), (0, 3)),
    "QOrderedMatMul": (0, 2),
}
"""Products that are integers by themselves, and which of their inputs are the operands."""

WEIGHT_ONLY = frozenset({"MatMulNBits", "MatMulBnb4", "MatMulFpQ4"})
"""Products of a float and a weight of a few bits."""

ATTENTION = frozenset(
    {
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "SparseAttention", "PackedMultiHeadAttention"),
        "DecoderMaskedMultiHeadAttention",
    }
)
"""Both products of attention, with the softmax between them. None has a form for integers."""

ATTENTION_WITH_WEIGHTS: Mapping[str, bool] = {
    **dict.fromkeys(("Attention", "PackedAttention", "LongformerAttention", "DecoderMaskedSelfAttention"), False),
    **dict.fromkeys(("QAttention", "QOrderedAttention"), True),
}
"""Attention of ONNX Runtime together with the product that makes query, key and value, and whether that is int8."""

CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv"})

INTEGER_OPERATORS = frozenset(
    {*INTEGER_PRODUCTS, *(name for name, is_int8 in ATTENTION_WITH_WEIGHTS.items() if is_int8)}
)
"""Products whose name says that they run in integers."""

PRODUCTS = frozenset(
    {
        *(*FLOAT_PRODUCTS, *INTEGER_PRODUCTS, *WEIGHT_ONLY, *ATTENTION, *ATTENTION_WITH_WEIGHTS),
        "FullyConnected",  # OpenVINO's name
    }
)
"""All of them."""
