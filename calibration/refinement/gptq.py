"""GPTQ: weight rounding in which each column compensates for the rounding errors of the columns before it.

Source: Frantar et al. 2022, arXiv 2210.17323.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdq.quantization.functional import expand_parameter

if TYPE_CHECKING:
    from torch import Tensor

    from qdq.quantization.spec import QuantSpec

__all__ = ["PAIR_LIMIT", "round_by_columns"]

PAIR_LIMIT = 128
"""The largest sum of two neighbors that is safe, see :mod:`qdq.quantization.modules.weight`: 255 * 128 fits int16."""

_BLOCK = 128  # columns whose errors are applied together to the rest of the weight, which is faster than one by one


def round_by_columns(
    weight: Tensor, hessian: Tensor, spec: QuantSpec, scale: Tensor, zero_point: Tensor, *, damping: float
) -> Tensor:
    """Round a weight column by column, and distribute the error of each column over those that follow.

    Columns with the largest inputs come first. With ``spec.overflow_safe``, the sum of no two neighbors exceeds
    :data:`PAIR_LIMIT`.

    Args:
        weight: ``(out, in)``.
        hessian: The second moments of the inputs, ``(in, in)``.
        spec: The spec of the weight.
        scale: The scale of its quantizer.
        zero_point: The zero point of its quantizer.
        damping: A positive share of the mean of ``hessian``'s diagonal, which is added to the diagonal. The larger it
            is, the less the samples are trusted, and the closer the result is to rounding to the nearest.

    Returns:
        Whole numbers in the range of ``spec``, float32 ``(out, in)``.
    """
    columns = weight.shape[1]
    steps = expand_parameter(scale, weight, spec.axis, spec.group).expand_as(weight)
    zeros = expand_parameter(zero_point, weight, spec.axis, spec.group).expand_as(weight).to(torch.float32)
    low = torch.full_like(weight, spec.qmin)
    high = torch.full_like(weight, spec.qmax)
    # The first columns are rounded with all others still free to compensate, so the important ones come first.
    order = torch.argsort(hessian.diagonal(), descending=True)
    # The inverse of the Hessian is ill-conditioned with few samples; float64 and damping keep it positive definite.
    damped = hessian.double()[order][:, order]
    damped += torch.eye(columns, dtype=torch.float64, device=hessian.device) * _ridge(hessian, damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    left = weight[:, order].clone()
    found = torch.empty_like(weight)
    for start in range(0, columns, _BLOCK):
        block = slice(start, min(start + _BLOCK, columns))
        inside, own = left[:, block].clone(), upper[block, block]
        errors = torch.empty_like(inside)
        for i in range(inside.shape[1]):
            at = int(order[start + i])
            step, zero = steps[:, at], zeros[:, at]
            q = ((inside[:, i] / step).round() + zero).clamp(low[:, at], high[:, at])
            found[:, at] = q
            if spec.overflow_safe:
                # Narrow the bounds of both neighbors, so that their sums with this column stay within the limit.
                for neighbor in (at - 1, at + 1):
                    if 0 <= neighbor < columns:
                        high[:, neighbor] = torch.minimum(high[:, neighbor], PAIR_LIMIT - q)
                        low[:, neighbor] = torch.maximum(low[:, neighbor], -PAIR_LIMIT - q)
            errors[:, i] = (inside[:, i] - (q - zero) * step) / own[i, i]
            inside[:, i:] -= errors[:, i, None] * own[i, i:]
        # The remaining columns get the errors of the whole block in one product.
        left[:, block.stop :] -= errors @ upper[block, block.stop :]
    return found


def _ridge(hessian: Tensor, damping: float) -> float:
    return max(damping * float(hessian.diagonal().double().mean()), 1e-12)
