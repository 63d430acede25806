"""Fold transforms, roundings and bias corrections into weights, biases and norms, so that export has less to compute.

Where nothing can absorb a transform exactly, a multiplication and a subtraction by vectors remain before the quantizer.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qdq.quantization.graph import QuantizedRead, quantized_reads
from qdq.quantization.modules import QuantAdd, QuantLinear
from qdq.quantization.quantizer import quantizers
from qdq.quantization.transform import Transform

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["folded", "without_transforms"]


class _Changes(ExitStack):
    """A context in which attributes of modules are set, and restored at its end."""

    def set(self, module: nn.Module, name: str, value: object) -> None:
        """Set an attribute until the context ends."""
        before = getattr(module, name)
        self.callback(setattr, module, name, before)
        if isinstance(value, nn.Parameter) and isinstance(before, Tensor) and value.dtype != before.dtype:
            # Transforms are float32, but the model may be in half precision.
            value = _parameter(value.to(before.dtype))
        setattr(module, name, value)


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Fold for the duration of a context. Apart from float rounding, the model computes the same as before.

    1. A weight becomes its transformed value. If a rounding was chosen, it becomes the values of its integers.
    2. A bias becomes the sum of itself and what transforms and corrections add to it.
    3. Pre-norm: the norm before linear layers absorbs their shift and smoothing scale. A norm without bias, such as
       RMSNorm, absorbs the smoothing scale, if there is no shift.
    4. Post-norm: the norm absorbs the shift alone, if the residual addition that also reads it has the same shift. The
       bias of the addition's branch adds the shift back. The smoothing scale stays before the quantizer.
    5. No norm: the linear layer whose output the others read absorbs their smoothing scale, and the residual addition
       divides it out again.

    Args:
        model: A wrapped model. Its modules are changed, and restored when the context ends.
    """
    with _Changes() as changes, torch.no_grad():
        linears = [module for module in model.modules() if isinstance(module, QuantLinear)]
        # Compute all biases before any change, since they depend on weights and transforms.
        biases = [linear.whole_bias() for linear in linears]
        for linear, bias in zip(linears, biases, strict=True):
            if bias is not linear.bias:
                changes.set(linear, "bias", None if bias is None else _parameter(bias))
            changes.set(linear, "is_folded", value=True)
        # Depths that share a weight (ALBERT) share the folded one as well, so that export stores it once.
        weights: dict[tuple[int, int], nn.Parameter] = {}
        for linear in linears:
            _fold_weight(changes, linear, weights)
        for read in quantized_reads(model):
            _fold_norm(changes, read)
        yield


@contextmanager
def without_transforms(model: nn.Module) -> Iterator[None]:
    """Remove all transforms, roundings and bias corrections for the duration of a context.

    The model then computes exactly what it did before refinement, to the bit.

    Args:
        model: A wrapped model. Its modules are restored when the context ends.
    """
    with _Changes() as changes:
        for _, quantizer in quantizers(model):
            changes.set(quantizer, "transform", None)
            changes.set(quantizer, "rounding", None)
        for module in model.modules():
            if isinstance(module, QuantLinear):
                changes.set(module, "bias_correction", None)
        yield


def _fold_weight(changes: _Changes, linear: QuantLinear, weights: dict[tuple[int, int], nn.Parameter]) -> None:
    """Fold case 1 into the weight of ``linear``; ``weights`` holds the results so far, by weight and quantizer."""
    quantizer = linear.weight_quantizer
    key = (id(linear.weight), id(quantizer))
    if key not in weights and (quantizer.transform is not None or quantizer.rounding is not None):
        # Only the quantizer applies a rounding; a plain transform needs no integers.
        fold = quantizer if quantizer.rounding is not None else quantizer.prepared
        weights[key] = _parameter(fold(linear.weight))
        changes.set(quantizer, "transform", None)
        changes.set(quantizer, "rounding", None)
    if key in weights:
        changes.set(linear, "weight", weights[key])


def _fold_norm(changes: _Changes, read: QuantizedRead) -> None:
    """Fold cases 3 and 4 into the norm of ``read``, or case 5 if it has none."""
    transform = read.linears[0].input_quantizer.transform
    # One norm can absorb only one transform, so all its readers must have the same.
    if transform is None or any(not _equal(transform, other) for other in _other_transforms(read)):
        return
    if read.norm is None:
        _fold_source(changes, read, transform)
        return
    norm, add, branch = read.norm, read.add, read.branch
    shift, smoothing_scale = transform.shift, transform.smoothing_scale
    weight: Tensor = norm.get_parameter("weight")
    bias: Tensor | None = getattr(norm, "bias", None)
    if bias is None and shift is not None:  # an RMSNorm has no bias that could absorb a shift
        return
    if add is None:  # case 3
        if bias is not None:
            bias = bias if shift is None else bias - shift
            changes.set(norm, "bias", _parameter(bias if smoothing_scale is None else bias * smoothing_scale))
        if smoothing_scale is not None:
            changes.set(norm, "weight", _parameter(weight * smoothing_scale))
        left = None
    elif (
        bias is not None and shift is not None and _has_shift(add, shift) and isinstance(branch, QuantLinear)
    ):  # case 4
        changes.set(norm, "bias", _parameter(bias - shift))
        changes.set(branch, "bias", _parameter(shift if branch.bias is None else branch.bias + shift))
        changes.set(add.other_quantizer, "transform", None)
        left = None if smoothing_scale is None else Transform(smoothing_scale=smoothing_scale)
    else:
        return
    for linear in read.linears:
        changes.set(linear.input_quantizer, "transform", left)


def _fold_source(changes: _Changes, read: QuantizedRead, transform: Transform) -> None:
    """Fold case 5.

    Without it, a multiplication would stand between a float linear layer and a quantizer, where OpenVINO 2026.4 errs.
    """
    source, add, smoothing_scale = read.source, read.add, transform.smoothing_scale
    if source is None or add is None or smoothing_scale is None or transform.shift is not None:
        return
    # Scaling a quantized weight would change its integers. An addition with a transform already undoes another one.
    if source.weight_quantizer.spec is not None or add.other_quantizer.transform is not None:
        return
    changes.set(source, "weight", _parameter(source.weight * smoothing_scale[:, None]))
    if source.bias is not None:
        changes.set(source, "bias", _parameter(source.bias * smoothing_scale))
    changes.set(add.other_quantizer, "transform", Transform(smoothing_scale=1 / smoothing_scale))
    for linear in read.linears:
        changes.set(linear.input_quantizer, "transform", None)


def _other_transforms(read: QuantizedRead) -> list[Transform | None]:
    return [linear.input_quantizer.transform for linear in read.linears[1:]]


def _equal(transform: Transform, other: Transform | None) -> bool:
    if other is None or transform is other:
        return transform is other
    pairs = ((getattr(transform, name), getattr(other, name)) for name in ("shift", "smoothing_scale"))
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _has_shift(add: QuantAdd, shift: Tensor) -> bool:
    transform = add.other_quantizer.transform
    return transform is not None and transform.shift is not None and torch.equal(transform.shift, shift)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
