"""After the ranges: weights rounded so that errors cancel, and biases that make good what is left of them on average.

Layer by layer, on a few samples: what each linear layer reads in the float model is known, and what it reads when
everything in front of it is quantized and refined already. From the two follow

1. the range of its input, if it is to be clipped (:mod:`calibration.refinement.token_clipping`);
2. the rounding of its weight (:mod:`calibration.refinement.gptq`), so that its outputs come closest to the float ones;
3. the correction of its bias: the difference of the mean outputs.

A weight that several depths share (ALBERT) is rounded once, for the inputs of all depths together; corrections follow
in a second walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calibration.batches import eval_mode
from calibration.refinement.gptq import round_by_columns
from calibration.refinement.layer_inputs import Stream
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


_DAMPING = 0.1  # of the mean variance of an input; much, for samples are few


@dataclass
class _Moments:
    """Means over tokens: of the float inputs, of the quantized ones and of their products; all are transformed."""

    count: int
    mean_float: Tensor  # (in,)
    mean_quantized: Tensor  # (in,)
    products: Tensor  # (in, in)

    def add(self, other: _Moments) -> _Moments:
        """Over the tokens of both."""
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
    """Refine the linear layers of every encoder in a calibrated model, in read.

    Args:
        model: wrapped and calibrated; quantizes afterwards.
        batches: keyword arguments of the model; their hidden states are kept in memory.
        rounding: ``nearest``, or ``gptq``.
        bias_correction: whether biases are corrected.
        clipping: ``none``, or ``token-wise``.
        progress: called with the number of layers done and to do.

    Returns:
        The names of the linear layers that were changed.

    Raises:
        CalibrationError: for an unknown rounding or clipping, no data, slots that are not calibrated, or inputs
            that are not finite.
    """
    if rounding not in ROUNDINGS:
        raise CalibrationError(f"no rounding {rounding!r}: it must be one of {', '.join(ROUNDINGS)}")
    if clipping not in CLIPPINGS:
        raise CalibrationError(f"no clipping {clipping!r}: it must be one of {', '.join(CLIPPINGS)}")
    kept = list(batches)
    set_mode(model, Mode.QUANTIZE)
    changed: list[str] = []
    try:
        with eval_mode(model), torch.no_grad():
            for encoder in [module for module in model.modules() if isinstance(module, Encoder)]:
                changed += _Refiner(model, encoder, kept, rounding, bias_correction, clipping, progress).run()
    finally:
        set_mode(model, Mode.QUANTIZE)
    return changed


class _Refiner:
    """The work on one encoder."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        batches: Sequence[Mapping[str, Tensor]],
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
        self.shared = {quantizer for quantizer, count in users.items() if count > 1}
        self.moments: dict[Quantizer, tuple[QuantLinear, _Moments]] = {}

    def run(self) -> list[str]:
        again = self.rounds and self.corrects and bool(self.shared)
        done = self._walk(clips=self.clips, rounds=self.rounds, corrects=self.corrects and not again)
        for linear, moments in self.moments.values():
            self._round(linear, moments)
        if again:
            done += self._walk(clips=False, rounds=False, corrects=True)
        return list(dict.fromkeys(done))

    def _walk(self, *, clips: bool, rounds: bool, corrects: bool) -> list[str]:
        done: list[str] = []
        modes = {quantizer: quantizer.mode for _, quantizer in quantizers(self.model)}
        _switch(modes, off=True)
        plain = Stream(self.model, self.encoder, self.batches)
        _switch(modes, off=False)
        rounded = Stream(self.model, self.encoder, self.batches)
        layers = self.encoder.layers
        for index, layer in enumerate(layers):
            inside = set(layer.modules())
            stages = [[one for one in linears if one in inside and one.quantizes] for linears in self.stages]
            stages = [linears for linears in stages if linears]
            _switch(modes, off=True)
            floats = plain.inputs(layer, [linears[0] for linears in stages]) if stages else []
            plain.advance(layer)
            _switch(modes, off=False)
            for linears, x in zip(stages, floats, strict=True):
                (q,) = rounded.inputs(layer, linears[:1])
                if clips:
                    self._clip(linears, x, q)
                moments = _moments(linears[0], x, q, self.names[linears[0]])
                for linear in linears:
                    if rounds and linear.weight_quantizer.mode is Mode.QUANTIZE:
                        self._round_or_wait(linear, moments)
                    if corrects:
                        linear.bias_correction = _correction(linear, moments)
                    done.append(self.names[linear])
            rounded.advance(layer)
            if self.progress is not None:
                self.progress(index + 1, len(layers))
        return done

    def _clip(self, linears: Sequence[QuantLinear], x: Tensor, q: Tensor) -> None:
        """Choose the range of what ``linears`` read: ``x`` in the float model, ``q`` in the quantized one."""
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

    def _round_or_wait(self, linear: QuantLinear, moments: _Moments) -> None:
        quantizer = linear.weight_quantizer
        if quantizer not in self.shared:
            self._round(linear, moments)
        elif quantizer in self.moments:
            self.moments[quantizer] = (linear, self.moments[quantizer][1].add(moments))
        else:
            self.moments[quantizer] = (linear, moments)

    def _round(self, linear: QuantLinear, moments: _Moments) -> None:
        """Choose the rounding of the weight; what bias correction will take care of, the mean, does not count."""
        quantizer = linear.weight_quantizer
        spec = quantizer.spec
        if spec is None or spec.dynamic or spec.is_float8:  # of float8, every weight keeps its nearest number
            return
        hessian = moments.products
        if self.corrects:
            hessian = hessian - torch.outer(moments.mean_quantized, moments.mean_quantized)
        weight = _transformed_weight(linear)
        scale, zero_point = quantizer.grid(weight)
        q = round_by_columns(weight, hessian, spec, scale, zero_point, damping=_DAMPING)
        quantizer.rounding = None
        steps = q - quantizer.quantize(weight)
        quantizer.rounding = steps.clamp(-127, 127).to(torch.int8)


def _switch(modes: Mapping[Quantizer, Mode], *, off: bool) -> None:
    for quantizer, mode in modes.items():
        quantizer.mode = Mode.OFF if off else mode


def _moments(linear: QuantLinear, x: Tensor, q: Tensor, name: str) -> _Moments:
    """Of float inputs ``x`` and of the inputs ``q`` of the quantized model, ``(tokens, in)``, neither quantized yet."""
    quantizer = linear.input_quantizer
    x, q = (x if quantizer.transform is None else quantizer.transform(x)), quantizer(q)
    if not bool(torch.isfinite(x).all() and torch.isfinite(q).all()):
        raise CalibrationError(f"{name} saw NaN or infinite values")
    return _Moments(len(x), x.double().mean(0).float(), q.double().mean(0).float(), q.T @ q / len(q))


def _transformed_weight(linear: QuantLinear) -> Tensor:
    transform = linear.weight_quantizer.transform
    weight: Tensor = linear.weight if transform is None else transform(linear.weight)
    return weight.detach().float()


def _correction(linear: QuantLinear, moments: _Moments) -> Tensor:
    """The mean float output less the mean quantized one, without what the bias holds anyway."""
    rounded = linear.weight_quantizer(linear.weight).detach().float()
    correction: Tensor = _transformed_weight(linear) @ moments.mean_float - rounded @ moments.mean_quantized
    return correction
