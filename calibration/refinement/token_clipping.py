"""Token-wise clipping: which tokens' extremes a range should still hold, judged by what linear layers make of it.

Outliers in encoders belong to few tokens (separators, punctuation). A range is therefore not cut at a share of all
values but at a share of the tokens, by their largest and smallest values; and what a cut costs is measured behind the
weights, where an outlier may matter or not.

Source: Outlier Suppression (Wei et al. 2022, arXiv 2209.13325), the coarse stage, with the linear layers that read the
tensor as the block whose output counts.
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
"""Of the tokens whose extremes a range holds; the first keeps the range as it is."""

_TOKENS = 2048
_GAIN = 0.99  # a cut has to be better by more than chance


def clipped_range(
    x: Tensor, wanted: Tensor, weights: Sequence[Tensor], spec: QuantSpec, whole: Range, *, centred: bool
) -> Range:
    """The range with the least squared error of the outputs: ``whole``, or what holds a share of the tokens.

    Args:
        x: ``(tokens, in)``, what is quantized.
        wanted: ``(tokens, in)``, what the linear layers should read.
        weights: theirs, ``(out, in)``.
        spec: of the quantizer.
        whole: what calibration found; nothing beyond it is tried.
        centred: the mean error does not count, biases will be corrected.

    A range of float8 stays whole: its small numbers lose nothing to the large ones.
    """
    if spec.is_float8:
        return whole
    step = -(-len(x) // _TOKENS)  # evenly from all samples
    x, wanted = x[::step], wanted[::step]
    best, least = whole, float("inf")
    for share in SHARES:
        range_ = whole if share == 1 else _of_tokens(x, share, whole)
        bounds = range_.bounds(symmetric=spec.symmetric)
        error = fake_quantize_by_spec(x, *grid(*bounds, spec), spec) - wanted
        if centred:
            error -= error.mean(0)
        power = sum(float((error @ weight.T).double().square().sum()) for weight in weights)
        if power < least * _GAIN:
            best, least = range_, power
    return best


def _of_tokens(x: Tensor, share: float, whole: Range) -> Range:
    """The range that holds the extremes of so many tokens; both sides are cut by the same share."""
    upper = torch.quantile(x.amax(1), share).clamp(max=whole.upper).float()
    lower = torch.quantile(x.amin(1), 1 - share).clamp(min=whole.lower).float()
    amax = torch.quantile(x.abs().amax(1), share).clamp(max=whole.amax).float()
    return Range(torch.minimum(lower, upper), torch.maximum(lower, upper), amax)
