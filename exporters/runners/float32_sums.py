"""Let the evaluator of onnx compute sums of half precision in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["float32_sums"]

_SUMMING = ("LayerNormalization", "LogSoftmax", "ReduceL2", "ReduceMean", "ReduceSum", "Softmax")


def float32_sums(opset: int) -> list[type]:
    """Return operators for ``ReferenceEvaluator(new_ops=...)`` that compute in float32 and round the result.

    The evaluator's own operators add bfloat16 numbers in numpy, which rounds every partial sum: a sum of a few hundred
    numbers is off by percents. In ONNX, LayerNormalization adds in float32 (``stash_type``), and devices compute all
    such sums in float32.

    Args:
        opset: Version of the standard operators of the model.
    """
    from onnx.reference.ops import load_op

    return [_in_float32(name, load_op("", name, opset)) for name in _SUMMING]


def _in_float32(name: str, operator: Any) -> type:
    """Make a subclass of the evaluator's ``operator`` that differs for half precision only."""
    import ml_dtypes

    half = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

    def run(self: Any, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        kind = next((x.dtype for x in inputs if x is not None and x.dtype in half), None)
        wide = [x.astype(np.float32) if x is not None and x.dtype in half else x for x in inputs]
        found: tuple[Any, ...] = operator._run(self, *wide, **attributes)
        return found if kind is None else tuple(np.asarray(y).astype(kind) for y in found)

    return type(name, (operator,), {"op_domain": "", "_run": run})
