"""Token-wise clipping: choose how many tokens' extremes a range includes, by the error of the linear layers' outputs.

Outliers in encoders belong to few tokens (separators, punctuation). A range is therefore not clipped at a share of all
values but at a share of the tokens, by their largest and smallest values. The error is measured after the linear
layers, because they decide whether an outlier matters.

Source: the coarse stage of Outlier Suppression (Wei et al. 2022, arXiv 2209.13325), where the block whose output counts
is the linear layers that read the tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdq.quantization.functional import grid
from qdq.quantization.operators import fake_quantize_by_spec
from qdq.quantization.quantizer import Range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from qdq.quantization.spec import QuantSpec

__all__ = ["SHARES", "clipped_range"]

SHARES = (1.0, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.97, 0.95, 0.92, 0.9, 0.85, 0.8, 0.7, 0.6)
"""The shares of tokens whose extremes a range may include. The first one keeps the range as it is."""

_MAX_TOKENS = 2048
_IMPROVEMENT = 0.99  # a narrower range must lower the error by at least 1 %


def clipped_range(
    x: Tensor, wanted: Tensor, weights: Sequence[Tensor], spec: QuantSpec, whole: Range, *, centred: bool
) -> Range:
    """Return the range with the least squared error of the outputs: ``whole``, or one for a share of the tokens.

    A range of float8 is not clipped, because its small numbers keep their resolution next to large ones.

    Args:
        x: The tensor that is quantized, ``(tokens, in)``.
        wanted: The tensor that the linear layers read in the float model, ``(tokens, in)``.
        weights: The weights of the linear layers, ``(out, in)``.
        spec: The spec of the quantizer.
        whole: The range that calibration found, which is never exceeded.
        centred: Whether the mean error is ignored, because biases will be corrected.
    """
    if spec.is_float8:
        return whole
    step = -(-len(x) // _MAX_TOKENS)  # take tokens evenly from all samples
    x, wanted = x[::step], wanted[::step]
    best, least = whole, float("inf")
    for share in SHARES:
        range_ = whole if share == 1 else _of_tokens(x, share, whole)
        bounds = range_.bounds(symmetric=spec.symmetric)
        error = fake_quantize_by_spec(x, *grid(*bounds, spec), spec) - wanted
        if centred:
            error -= error.mean(0)
        power = sum(float((error @ weight.T).double().square().sum()) for weight in weights)
        if power < least * _IMPROVEMENT:
            best, least = range_, power
    return best


def _of_tokens(x: Tensor, share: float, whole: Range) -> Range:
    """Return the range that includes the extremes of a share of the tokens, the same share on both sides."""
    upper = torch.quantile(x.amax(1), share).clamp(max=whole.upper).float()
    lower = torch.quantile(x.amin(1), 1 - share).clamp(min=whole.lower).float()
    amax = torch.quantile(x.abs().amax(1), share).clamp(max=whole.amax).float()
    return Range(torch.minimum(lower, upper), torch.maximum(lower, upper), amax)
