"""Token-wise clipping against plain searches, on tensors whose outliers matter or do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calibration.refinement.token_clipping import SHARES, clipped_range
from qdq.quantization.functional import grid
from qdq.quantization.operators import fake_quantize_by_spec
from qdq.quantization.quantizer import Range
from qdq.quantization.spec import QuantSpec

SPECS = [
    pytest.param(QuantSpec(), id="int8"),
    pytest.param(QuantSpec(signed=False, symmetric=False), id="uint8-affine"),
]


def tensor_with_loud_tokens(loudness: float, channel: int = 2) -> Tensor:
    """1 % of 1,000 tokens have a large value in one channel."""
    x = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    x[::100, channel] += loudness
    return x


def whole_range(x: Tensor) -> Range:
    return Range(x.min(), x.max(), x.abs().max())


def power(x: Tensor, weight: Tensor, spec: QuantSpec, range_: Range) -> float:
    lower, upper = (-range_.amax, range_.amax) if spec.symmetric else (range_.lower, range_.upper)
    error = fake_quantize_by_spec(x, *grid(lower, upper, spec), spec) - x
    return float((error @ weight.T).square().sum())


@pytest.mark.parametrize("spec", SPECS)
def test_outliers_that_no_weight_reads_are_cut(spec: QuantSpec) -> None:
    x, weight = tensor_with_loud_tokens(100.0), torch.randn(8, 16)
    weight[:, 2] = 0
    found = clipped_range(x, x, [weight], spec, whole_range(x), centred=False)
    assert found.amax < 10
    assert power(x, weight, spec, found) < power(x, weight, spec, whole_range(x)) / 30


@pytest.mark.parametrize("spec", SPECS)
def test_outliers_that_weights_rely_on_are_kept(spec: QuantSpec) -> None:
    x, weight = tensor_with_loud_tokens(100.0), torch.randn(8, 16) * 0.01
    weight[:, 2] = 5
    whole = whole_range(x)
    assert clipped_range(x, x, [weight], spec, whole, centred=False) is whole


def test_a_range_of_float8_stays_whole() -> None:
    x = tensor_with_loud_tokens(100.0)
    weight = torch.randn(8, 16)
    weight[:, 2] = 0
    whole = whole_range(x)
    spec = QuantSpec(format="float8e4m3fn")
    assert clipped_range(x, x, [weight], spec, whole, centred=False) is whole


@pytest.mark.parametrize("spec", SPECS)
def test_no_share_of_the_tokens_is_clearly_better(spec: QuantSpec) -> None:
    x, weight = tensor_with_loud_tokens(8.0), torch.randn(8, 16)
    whole = whole_range(x)
    found = clipped_range(x, x, [weight], spec, whole, centred=False)
    others = [whole]
    for share in SHARES[1:]:
        quantiles = [torch.quantile(part, at) for part, at in ((x.amin(1), 1 - share), (x.amax(1), share))]
        others.append(Range(*quantiles, torch.quantile(x.abs().amax(1), share)))
    best = min(power(x, weight, spec, other) for other in others)
    assert power(x, weight, spec, found) <= best / 0.98


def test_what_biases_make_good_does_not_count() -> None:
    spec = QuantSpec()
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    x[:, 0] = 50 + x[:, 0] * 1e-3  # hardly changes: clipping it costs the mean alone
    weight = torch.ones(1, 4)
    whole = Range(torch.tensor(-60.0), torch.tensor(60.0), torch.tensor(60.0))
    kept = clipped_range(x, x, [weight], spec, whole, centred=False)
    cut = clipped_range(x, x, [weight], spec, whole, centred=True)
    assert cut.amax <= kept.amax
    assert cut.amax < 50.1
