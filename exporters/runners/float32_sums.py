"""Sums of half precision in onnx's evaluator, made in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["float32_sums"]

_SUMMING = ("LayerNormalization", "LogSoftmax", "ReduceL2", "ReduceMean", "ReduceSum", "Softmax")


def float32_sums(opset: int) -> list[type]:
    """Operators for ``ReferenceEvaluator(new_ops=...)``, which compute in float32 and round what comes out.

    The evaluator's own let numpy add numbers of bfloat16, which rounds every partial sum: a few hundred terms are off
    by percents. ONNX has LayerNormalization add in float32 (``stash_type``), and devices make all such sums so.

    Args:
        opset: of the model.
    """
    from onnx.reference.ops import load_op

    return [_in_float32(name, load_op("", name, opset)) for name in _SUMMING]


def _in_float32(name: str, operator: Any) -> type:
    """A subclass of the evaluator's ``operator``; with other types it does what that does."""
    import ml_dtypes

    half = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

    def run(self: Any, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        kind = next((x.dtype for x in inputs if x is not None and x.dtype in half), None)
        wide = [x.astype(np.float32) if x is not None and x.dtype in half else x for x in inputs]
        found: tuple[Any, ...] = operator._run(self, *wide, **attributes)
        return found if kind is None else tuple(np.asarray(y).astype(kind) for y in found)

    return type(name, (operator,), {"op_domain": "", "_run": run})
