"""Transforms, roundings and corrections made part of weights, biases and norms: the same model in plainer modules.

What remains in front of a quantizer is at most one multiplication and one subtraction by vectors, where nothing exact
could take them in.
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
    """Attributes of modules that are set, and set back in the end."""

    def set(self, module: nn.Module, name: str, value: object) -> None:
        before = getattr(module, name)
        self.callback(setattr, module, name, before)
        if isinstance(value, nn.Parameter) and isinstance(before, Tensor) and value.dtype != before.dtype:
            value = _parameter(value.to(before.dtype))  # transforms are float32, the model may be in half precision
        setattr(module, name, value)


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """For as long as the context lasts, ``model`` computes the same in real arithmetic, with less to compute.

    1. A weight is what its transform makes of it; where a rounding was chosen, it lies on the grid already.
    2. A bias holds what transforms and corrections add to it.
    3. With pre-norm, the LayerNorm in front of linear layers takes in their shift and factor.
    4. With post-norm, it takes in the shift alone, when the residual addition that reads it, too, has the same; that
       addition gets it back from the bias of its branch.
    5. A linear layer that puts out what others read takes in their factor; the residual addition undoes it.
    """
    with _Changes() as changes, torch.no_grad():
        linears = [module for module in model.modules() if isinstance(module, QuantLinear)]
        biases = [linear.whole_bias() for linear in linears]  # before anything that they are computed from is changed
        for linear, bias in zip(linears, biases, strict=True):
            if bias is not linear.bias:
                changes.set(linear, "bias", None if bias is None else _parameter(bias))
            changes.set(linear, "is_folded", value=True)
        weights: dict[tuple[int, int], nn.Parameter] = {}  # shared ones stay shared
        for linear in linears:
            _fold_weight(changes, linear, weights)
        for read in quantized_reads(model):
            _fold_norm(changes, read)
        yield


@contextmanager
def without_transforms(model: nn.Module) -> Iterator[None]:
    """For as long as the context lasts, ``model`` computes as if it had never been transformed, to the bit."""
    with _Changes() as changes:
        for _, quantizer in quantizers(model):
            changes.set(quantizer, "transform", None)
            changes.set(quantizer, "rounding", None)
        for module in model.modules():
            if isinstance(module, QuantLinear):
                changes.set(module, "bias_correction", None)
        yield


def _fold_weight(changes: _Changes, linear: QuantLinear, weights: dict[tuple[int, int], nn.Parameter]) -> None:
    quantizer = linear.weight_quantizer
    key = (id(linear.weight), id(quantizer))
    if key not in weights and (quantizer.transform is not None or quantizer.rounding is not None):
        of = quantizer if quantizer.rounding is not None else quantizer.prepared
        weights[key] = _parameter(of(linear.weight))
        changes.set(quantizer, "transform", None)
        changes.set(quantizer, "rounding", None)
    if key in weights:
        changes.set(linear, "weight", weights[key])


def _fold_norm(changes: _Changes, read: QuantizedRead) -> None:
    transform = read.linears[0].input_quantizer.transform
    if transform is None or any(not _same(transform, one) for one in _others(read)):
        return
    if read.norm is None:
        _fold_source(changes, read, transform)
        return
    norm, add, branch = read.norm, read.add, read.branch
    shift, factor = transform.shift, transform.factor
    weight: Tensor = norm.get_parameter("weight")
    bias: Tensor | None = getattr(norm, "bias", None)
    if bias is None and shift is not None:  # an RMSNorm has nothing that could take a shift in
        return
    if add is None:  # case 3
        if bias is not None:
            bias = bias if shift is None else bias - shift
            changes.set(norm, "bias", _parameter(bias if factor is None else bias * factor))
        if factor is not None:
            changes.set(norm, "weight", _parameter(weight * factor))
        left = None
    elif (
        bias is not None and shift is not None and _shifts_alike(add, shift) and isinstance(branch, QuantLinear)
    ):  # case 4
        changes.set(norm, "bias", _parameter(bias - shift))
        changes.set(branch, "bias", _parameter(shift if branch.bias is None else branch.bias + shift))
        changes.set(add.other_quantizer, "transform", None)
        left = None if factor is None else Transform(factor=factor)
    else:
        return
    for linear in read.linears:
        changes.set(linear.input_quantizer, "transform", left)


def _fold_source(changes: _Changes, read: QuantizedRead, transform: Transform) -> None:
    """Case 5; OpenVINO 2026.4 errs where a multiplication stands between a float linear layer and a quantizer."""
    source, add, factor = read.source, read.add, transform.factor
    if source is None or add is None or factor is None or transform.shift is not None:
        return
    if source.weight_quantizer.spec is not None or add.other_quantizer.transform is not None:
        return
    changes.set(source, "weight", _parameter(source.weight * factor[:, None]))
    if source.bias is not None:
        changes.set(source, "bias", _parameter(source.bias * factor))
    changes.set(add.other_quantizer, "transform", Transform(factor=1 / factor))
    for linear in read.linears:
        changes.set(linear.input_quantizer, "transform", None)


def _others(read: QuantizedRead) -> list[Transform | None]:
    return [linear.input_quantizer.transform for linear in read.linears[1:]]


def _same(transform: Transform, other: Transform | None) -> bool:
    if other is None or transform is other:
        return transform is other
    pairs = ((getattr(transform, name), getattr(other, name)) for name in ("shift", "factor"))
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _shifts_alike(add: QuantAdd, shift: Tensor) -> bool:
    transform = add.other_quantizer.transform
    return transform is not None and transform.shift is not None and torch.equal(transform.shift, shift)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
