"""Refine a calibrated model layer by layer: clip ranges, round weights, and correct biases.

For a few samples, the input of each linear layer is computed twice: in the float model, and in the quantized model with
the earlier layers refined already. From both follow

1. the range of the input, if it is to be clipped (:mod:`calibration.refinement.token_clipping`);
2. the rounding of the weight (:mod:`calibration.refinement.gptq`) that brings the outputs closest to the float ones;
3. the correction of the bias: the difference of the mean outputs.

A weight that several depths share (ALBERT) is rounded once, for the inputs of all depths together. Biases are then
corrected in a second pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calibration.batches import eval_mode
from calibration.refinement.gptq import round_by_columns
from calibration.refinement.layer_inputs import LayerInputs
from calibration.refinement.token_clipping import clipped_range
from qdq.errors import CalibrationError
from qdq.models.encoder import Encoder
from qdq.quantization.graph import quantized_reads
from qdq.quantization.quantizer import Mode, Quantizer, quantizers, set_mode
from qdq.recipes.refinement import CLIPPINGS, ROUNDINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from qdq.quantization.modules import QuantLinear

__all__ = ["refine"]


_DAMPING = 0.1  # in units of the mean variance of an input; large, because there are few samples


@dataclass
class _Moments:
    """Means over tokens of the inputs of a linear layer, after its transform.

    Args:
        count: Number of tokens.
        mean_float: Mean of the inputs in the float model, ``(in,)``.
        mean_quantized: Mean of the quantized inputs, ``(in,)``.
        products: Mean of the outer products of the quantized inputs with themselves, ``(in, in)``.
    """

    count: int
    mean_float: Tensor
    mean_quantized: Tensor
    products: Tensor

    def add(self, other: _Moments) -> _Moments:
        """Return the means over the tokens of both."""
        total = self.count + other.count
        a, b = self.count / total, other.count / total
        names = ("mean_float", "mean_quantized", "products")
        return _Moments(total, *(a * getattr(self, name) + b * getattr(other, name) for name in names))


def refine(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    rounding: str = "gptq",
    bias_correction: bool = True,
    clipping: str = "none",
    progress: Callable[[int, int], object] | None = None,
) -> list[str]:
    """Refine the linear layers of every encoder in a calibrated model, in place.

    Args:
        model: A wrapped and calibrated model. Its mode is ``QUANTIZE`` afterwards.
        batches: Keyword arguments of the model, whose hidden states are kept in memory.
        rounding: ``nearest`` or ``gptq``.
        bias_correction: Whether to correct biases.
        clipping: ``none`` or ``token-wise``.
        progress: Called with the number of finished layers and of all layers.

    Returns:
        The names of the linear layers that were changed.

    Raises:
        CalibrationError: The rounding or the clipping is unknown, there is no data, slots are not calibrated, or inputs
            are not finite.
    """
    if rounding not in ROUNDINGS:
        raise CalibrationError(f"no rounding {rounding!r}: it must be one of {', '.join(ROUNDINGS)}")
    if clipping not in CLIPPINGS:
        raise CalibrationError(f"no clipping {clipping!r}: it must be one of {', '.join(CLIPPINGS)}")
    kept = list(batches)  # they are read at least twice for each encoder
    set_mode(model, Mode.QUANTIZE)
    changed: list[str] = []
    try:
        with eval_mode(model), torch.no_grad():
            for encoder in [module for module in model.modules() if isinstance(module, Encoder)]:
                refiner = _Refiner(
                    model,
                    encoder,
                    kept,
                    rounding=rounding,
                    bias_correction=bias_correction,
                    clipping=clipping,
                    progress=progress,
                )
                changed += refiner.run()
    finally:
        set_mode(model, Mode.QUANTIZE)
    return changed


class _Refiner:
    """Refine one encoder; the arguments are those of :func:`refine`."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        batches: Sequence[Mapping[str, Tensor]],
        *,
        rounding: str,
        bias_correction: bool,
        clipping: str,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.model, self.encoder, self.batches = model, encoder, batches
        self.rounds, self.corrects, self.clips = rounding != "nearest", bias_correction, clipping != "none"
        self.progress = progress
        self.names = {module: name for name, module in model.named_modules()}
        self.stages = [read.linears for read in quantized_reads(model)]
        users: dict[Quantizer, int] = {}
        for linears in self.stages:
            for linear in linears:
                users[linear.weight_quantizer] = users.get(linear.weight_quantizer, 0) + 1
        # The rounding of a shared weight has to wait for the inputs of all its depths.
        self.shared = {quantizer for quantizer, count in users.items() if count > 1}
        self.moments: dict[Quantizer, tuple[QuantLinear, _Moments]] = {}

    def run(self) -> list[str]:
        """Refine all layers, and return the names of the linear layers that were changed."""
        # Biases make up for the final rounding, so with shared weights they need a second pass.
        again = self.rounds and self.corrects and bool(self.shared)
        done = self._refine_layers(clips=self.clips, rounds=self.rounds, corrects=self.corrects and not again)
        for linear, moments in self.moments.values():
            self._round(linear, moments)
        if again:
            done += self._refine_layers(clips=False, rounds=False, corrects=True)
        return list(dict.fromkeys(done))

    def _refine_layers(self, *, clips: bool, rounds: bool, corrects: bool) -> list[str]:
        """Pass over all layers, and return the names of the linear layers that were refined."""
        done: list[str] = []
        modes = {quantizer: quantizer.mode for _, quantizer in quantizers(self.model)}
        # Two streams of hidden states: one as in the float model, one as in the quantized model refined so far.
        _set_modes(modes, off=True)
        plain = LayerInputs(self.model, self.encoder, self.batches)
        _set_modes(modes, off=False)
        rounded = LayerInputs(self.model, self.encoder, self.batches)
        layers = self.encoder.layers
        for index, layer in enumerate(layers):
            inside = set(layer.modules())
            stages = [[one for one in linears if one in inside and one.quantizes] for linears in self.stages]
            stages = [linears for linears in stages if linears]
            _set_modes(modes, off=True)
            # All layers of a stage read the same tensor, so the input of the first one is that of all.
            floats = plain.inputs(layer, [linears[0] for linears in stages]) if stages else []
            plain.advance(layer)
            _set_modes(modes, off=False)
            for linears, x in zip(stages, floats, strict=True):
                # Run the layer anew for each stage, since the stages before it have just changed.
                (q,) = rounded.inputs(layer, linears[:1])
                if clips:
                    self._clip(linears, x, q)
                moments = _moments(linears[0], x, q, self.names[linears[0]])
                for linear in linears:
                    if rounds and linear.weight_quantizer.mode is Mode.QUANTIZE:
                        self._round_or_collect(linear, moments)
                    if corrects:
                        linear.bias_correction = _correction(linear, moments)
                    done.append(self.names[linear])
            rounded.advance(layer)
            if self.progress is not None:
                self.progress(index + 1, len(layers))
        return done

    def _clip(self, linears: Sequence[QuantLinear], x: Tensor, q: Tensor) -> None:
        """Choose the range of the input of ``linears``: ``x`` in the float model, ``q`` in the quantized one."""
        quantizer = linears[0].input_quantizer
        spec, transform, whole = quantizer.spec, quantizer.transform, quantizer.range
        if spec is None or spec.dynamic or whole is None:
            return
        if transform is not None:
            x, q = transform(x), transform(q)
        weights = [_transformed_weight(linear) for linear in linears]
        range_ = clipped_range(q.float(), x.float(), weights, spec, whole, centred=self.corrects)
        for own in dict.fromkeys(linear.input_quantizer for linear in linears):
            own.set_range(range_)

    def _round_or_collect(self, linear: QuantLinear, moments: _Moments) -> None:
        """Round the weight, or add to the moments of a shared weight, which is rounded after the pass."""
        quantizer = linear.weight_quantizer
        if quantizer not in self.shared:
            self._round(linear, moments)
        elif quantizer in self.moments:
            self.moments[quantizer] = (linear, self.moments[quantizer][1].add(moments))
        else:
            self.moments[quantizer] = (linear, moments)

    def _round(self, linear: QuantLinear, moments: _Moments) -> None:
        """Choose the rounding of the weight."""
        quantizer = linear.weight_quantizer
        spec = quantizer.spec
        if spec is None or spec.dynamic or spec.is_float8:  # float8 weights are rounded to nearest
            return
        hessian = moments.products
        if self.corrects:
            # The bias will correct the mean error of the outputs, so only the variance of the inputs counts.
            hessian = hessian - torch.outer(moments.mean_quantized, moments.mean_quantized)
        weight = _transformed_weight(linear)
        scale, zero_point = quantizer.grid(weight)
        q = round_by_columns(weight, hessian, spec, scale, zero_point, damping=_DAMPING)
        # Store the difference from rounding to nearest, so that the float weight stays what it was.
        quantizer.rounding = None
        steps = q - quantizer.quantize(weight)
        quantizer.rounding = steps.clamp(-127, 127).to(torch.int8)


def _set_modes(modes: Mapping[Quantizer, Mode], *, off: bool) -> None:
    for quantizer, mode in modes.items():
        quantizer.mode = Mode.OFF if off else mode


def _moments(linear: QuantLinear, x: Tensor, q: Tensor, name: str) -> _Moments:
    """Return the moments of the inputs of ``linear``, both ``(tokens, in)`` and not quantized yet.

    Args:
        linear: The linear layer.
        x: Its input in the float model.
        q: Its input in the quantized model.
        name: Its name, for messages.
    """
    quantizer = linear.input_quantizer
    x, q = (x if quantizer.transform is None else quantizer.transform(x)), quantizer(q)
    if not bool(torch.isfinite(x).all() and torch.isfinite(q).all()):
        raise CalibrationError(f"{name} saw NaN or infinite values")
    # Sums over many tokens lose digits in float32.
    return _Moments(len(x), x.double().mean(0).float(), q.double().mean(0).float(), q.T @ q / len(q))


def _transformed_weight(linear: QuantLinear) -> Tensor:
    transform = linear.weight_quantizer.transform
    weight: Tensor = linear.weight if transform is None else transform(linear.weight)
    return weight.detach().float()


def _correction(linear: QuantLinear, moments: _Moments) -> Tensor:
    """Return the mean float output minus the mean quantized output, both without the bias."""
    rounded = linear.weight_quantizer(linear.weight).detach().float()
    correction: Tensor = _transformed_weight(linear) @ moments.mean_float - rounded @ moments.mean_quantized
    return correction
