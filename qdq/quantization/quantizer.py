"""The state of one quantizer: its spec, its mode, its range and the scale and zero_point that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from qdq.errors import CalibrationError, describe_problems
from qdq.quantization import functional, operators
from qdq.quantization.spec import PerToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qdq.quantization.spec import QuantSpec
    from qdq.quantization.transform import Transform

__all__ = ["Mode", "Observer", "Quantizer", "Range", "Recorder", "quantizers", "set_mode"]


class Mode(Enum):
    """What a quantizer does with the tensor that passes through."""

    OFF = "off"
    COLLECT = "collect"
    QUANTIZE = "quantize"


@dataclass(frozen=True)
class Range:
    """What calibration found out about a tensor, from which the scale of *any* spec follows.

    ``lower`` and ``upper`` bound the values for affine specs, ``amax`` bounds their magnitude for symmetric ones (a
    percentile of ``|x|`` is not the larger of the two one-sided percentiles). float32, ``()`` or ``(channels,)``.
    """

    lower: Tensor
    upper: Tensor
    amax: Tensor

    def bounds(self, *, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Lowest and highest value that a grid has to cover."""
        return (-self.amax, self.amax) if symmetric else (self.lower, self.upper)


class Observer(Protocol):
    """What a quantizer shows its tensor to in mode COLLECT; see ``calibration.statistics.collectors``."""

    def update(self, x: Tensor) -> None:
        """Take note of ``x``."""


class Recorder(Protocol):
    """Sees the integers of a quantizer, for verification: ``(x, q)``, q in float32."""

    def __call__(self, x: Tensor, q: Tensor) -> None:
        """Take note of the tensor and of its integers."""


class Quantizer(nn.Module):
    """One slot of a wrapped module.

    A slot that the recipe leaves alone has a quantizer without spec: it passes its input on, and has no state. Its
    range is still collected, so that the same checkpoint can be exported with another recipe later.

    Args:
        spec: how to quantize, None for a slot that stays float.
        shape: of the scale, as ``spec.scale_shape`` tells; () per tensor.

    Attributes:
        scale: float32 whatever the model's type, of the shape above; NaN until calibrated. A Parameter when the spec
            says ``learned_scale``; absent when its ranges are dynamic.
        zero_point: int32, the shape of ``scale``; absent likewise.
        amax: float32, the shape of ``scale``; only for the arithmetic of pytorch-quantization.
        transform: what is done to the tensor beforehand, in every mode; None: nothing. The range is that of the result.
        rounding: of weights whose rounding was chosen: int8, the weight's shape, steps to add before rounding; or None.
        readers: how many modules show this quantizer the same tensor, one after another: it is quantized once for all.
    """

    stored_apart: ClassVar[bool] = True  # a learned scale is a Parameter, but none of the float model's weights
    scale: Tensor
    zero_point: Tensor
    amax: Tensor
    rounding: Tensor | None
    transform: Transform | None

    def __init__(self, spec: QuantSpec | None = None, *, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.mode = Mode.OFF
        self.observer: Observer | None = None
        self.recorder: Recorder | None = None
        self.range: Range | None = None
        self.readers = 1
        self._shared: _Shared | None = None
        self.register_buffer("rounding", None)
        self.transform = None
        self.configure(spec, shape=shape)

    def configure(self, spec: QuantSpec | None, *, shape: tuple[int, ...] = ()) -> None:
        """Give the slot another spec; the scale starts uncalibrated, the transform stays."""
        self.spec = spec
        self.rounding = None
        for name in ("scale", "zero_point", "amax"):
            self._buffers.pop(name, None)
            self._parameters.pop(name, None)
        if spec is not None and not spec.dynamic:
            scale = torch.full(shape, torch.nan)
            if spec.learned_scale:
                self.register_parameter("scale", nn.Parameter(scale))
            else:
                self.register_buffer("scale", scale)
            self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
            if spec.arithmetic != "onnx":
                self.register_buffer("amax", torch.full(shape, torch.nan))
        if spec is None and self.mode is Mode.QUANTIZE:
            self.mode = Mode.OFF

    @property
    def is_calibrated(self) -> bool:
        """Whether there is all it takes to quantize; a slot without spec or with dynamic ranges needs nothing."""
        if self.spec is None or self.spec.dynamic:
            return True
        scale = self.scale.abs() if self.spec.learned_scale else self.scale
        return scale.numel() > 0 and _is_scale(scale)

    def set_range(self, range_: Range) -> None:
        """Keep what calibration found and set scale and zero_point from it."""
        self.range = range_
        if self.spec is None or self.spec.dynamic:
            return
        if self.spec.arithmetic != "onnx":
            self.set_amax(range_.amax)
        self.set_scale(*functional.grid(*range_.bounds(symmetric=self.spec.symmetric), self.spec))

    def set_amax(self, amax: Tensor) -> None:
        """Fill the range that pytorch-quantization's arithmetic starts from; :meth:`set_scale` fills the rest.

        Raises:
            CalibrationError: for another shape, and for values that are not finite or negative.
        """
        if amax.shape != self.amax.shape or not bool((torch.isfinite(amax) & (amax >= 0)).all()):
            shape = tuple(self.amax.shape)
            raise CalibrationError(f"quantizer ({self.spec}): amax must be finite, not negative, and of shape {shape}")
        self.amax.copy_(amax)

    def set_scale(self, scale: Tensor, zero_point: Tensor) -> None:
        """Fill the buffers, in place.

        Raises:
            CalibrationError: when the shapes do not fit, a scale is not finite and positive, or a zero point is not an
                integer of the spec (of a symmetric spec: not the one that is fixed).
        """
        assert self.spec is not None, "a slot without spec has no scale"
        assert not self.spec.dynamic, "dynamic ranges leave no scale behind"
        spec, scale = self.spec, scale.to(torch.float32)
        problems = []
        if scale.shape != self.scale.shape or zero_point.shape != self.scale.shape:
            problems.append(
                f"scale {tuple(scale.shape)}, zero_point {tuple(zero_point.shape)}: expected {tuple(self.scale.shape)}"
            )
        if not _is_scale(scale):
            problems.append("scale must be finite and positive")
        if zero_point.is_floating_point() or zero_point.is_complex():
            problems.append(f"zero_point must be whole numbers, not {zero_point.dtype}")
        elif spec.symmetric and not bool((zero_point == spec.middle).all()):
            problems.append(f"zero_point must be {spec.middle}")
        elif not bool(((zero_point >= spec.qmin) & (zero_point <= spec.qmax)).all()):
            problems.append(f"zero_point must lie in [{spec.qmin}, {spec.qmax}]")
        if problems:
            raise CalibrationError(describe_problems(f"quantizer ({spec})", problems))
        with torch.no_grad():
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)

    def freeze(self) -> None:
        """Make a learned scale a constant of the same value."""
        if self.spec is None or not self.spec.learned_scale:
            return
        scale, zero_point = (part.detach() for part in self.grid(self.scale))
        rounding = self.rounding
        self.configure(replace(self.spec, learned_scale=False), shape=tuple(scale.shape))
        self.rounding = rounding
        self.to(scale.device)
        self.set_scale(scale, zero_point)

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for ``x``: what was calibrated, or with dynamic ranges that of ``x`` itself."""
        assert self.spec is not None, "a slot without spec has no grid"
        if self.spec.learned_scale:
            # A step of training may carry the Parameter through zero; its magnitude is what counts.
            return self.scale.abs().clamp_min(torch.finfo(torch.float32).tiny), self.zero_point
        if not self.spec.dynamic:
            return self.scale, self.zero_point
        return functional.grid(*functional.value_range(x, self.spec), self.spec)

    def quantize(self, x: Tensor) -> Tensor:
        """The integers (or numbers of float8) of ``x``, in float32; it is transformed already."""
        assert self.spec is not None, "a slot without spec has no integers"
        spec, (scale, zero_point) = self.spec, self.grid(x)
        if spec.is_float8:
            return functional.quantize_float8(x, scale, axis=spec.axis)
        return functional.quantize(
            x, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=spec.axis, group=spec.group
        )

    def prepared(self, x: Tensor) -> Tensor:
        """What is rounded when ``x`` is quantized: transformed, and moved by the steps of a chosen rounding."""
        if self.transform is not None:
            x = self.transform(x)
        if self.rounding is not None and self.mode is Mode.QUANTIZE:
            assert self.spec is not None, "steps without a grid"
            scale = self.grid(x)[0].detach().to(x.dtype)
            x = x + functional.expand_parameter(scale, x, axis=self.spec.axis, group=self.spec.group) * self.rounding
        return x

    def forward(self, x: Tensor, reader: int = 0) -> Tensor:
        """Pass ``x`` on, transformed: as it is (OFF), shown to the observer (COLLECT), or rounded (QUANTIZE).

        Args:
            x: the tensor of the slot.
            reader: which of the ``readers`` asks, 0 and up. What one of them got, the others get too, as long as it is
                the same tensor; one that asks again gets it computed afresh.
        """
        if self.mode is Mode.OFF and self.transform is None:
            return x
        if self.readers == 1 or torch.compiler.is_compiling():  # a compiler sees for itself what is computed twice
            return self._pass(x)
        state = self._state_of(x)
        shared = self._shared
        if shared is not None and shared.x is x and shared.state == state and reader not in shared.served:
            served = shared.served | {reader}
            # Nobody but the readers holds the result: after the last of them it goes.
            self._shared = replace(shared, served=served) if len(served) < self.readers else None
            return shared.y
        y = self._pass(x)
        self._shared = _Shared(x, y, state, frozenset([reader]))
        return y

    def _state_of(self, x: Tensor) -> tuple[object, ...]:
        """What a result depends on besides the identity of ``x``."""
        extra = () if self.transform is None else self.transform._buffers.values()
        tensors = [x, *self._buffers.values(), *self._parameters.values(), *extra]
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors if tensor is not None]
        return (*versions, torch.is_grad_enabled(), self.mode)

    def look_up(self, table: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """``self(table)[ids]`` in mode QUANTIZE, for the cost of the ``rows`` that are ``table[ids]`` alone.

        Args:
            table: ``(entries, hidden)``.
            ids: ``(batch, seq)``.
            rows: ``(batch, seq, hidden)``.
        """
        spec = self.spec
        assert spec is not None, "a slot without spec has nothing to look up"
        if spec.axis is not None and spec.axis % 2:  # one scale for each column: the same for all rows
            return self._fake_quantize(rows, *self._state(table), axis=-1)
        by_row = spec.axis is not None or spec.group is not None
        state = [part[ids] for part in self._state(table)] if by_row else self._state(table)
        if spec.axis is not None:
            state = [part.unsqueeze(-1) for part in state]
        return self._fake_quantize(rows, *state, axis=None)

    def _pass(self, x: Tensor) -> Tensor:
        x = self.prepared(x)
        if self.mode is Mode.OFF:
            return x
        if self.mode is Mode.COLLECT:
            if self.observer is not None:
                self.observer.update(x.detach() if x.requires_grad else x)
            return x
        assert self.spec is not None, "mode QUANTIZE needs a spec"
        if self.recorder is not None:
            self.recorder(x.detach(), self.quantize(x.detach()))
        if self.spec.dynamic and self.spec.axis is None and torch.compiler.is_exporting():
            return operators.dynamic_fake_quantize(
                x,
                qmin=self.spec.qmin,
                qmax=self.spec.qmax,
                symmetric=self.spec.symmetric and not self.spec.starts_at_zero,
                per_token=isinstance(self.spec.granularity, PerToken),
            )
        return self._fake_quantize(x, *self._state(x), axis=self.spec.axis)

    @property
    def _by_amax(self) -> bool:
        """Whether to compute as pytorch-quantization does; ONNX knows its own arithmetic alone."""
        return self.spec is not None and self.spec.arithmetic != "onnx" and not torch.compiler.is_exporting()

    def _state(self, x: Tensor) -> Sequence[Tensor]:
        """Scale and zero point, or amax, for ``x``."""
        assert self.spec is not None
        if self._by_amax:
            return [functional.value_range(x.abs(), self.spec)[1].to(x.dtype) if self.spec.dynamic else self.amax]
        scale, zero_point = self.grid(x)
        if scale.requires_grad and torch.is_grad_enabled():
            scale = operators.scale_gradient(scale, count=self._count(x), qmax=self.spec.qmax)
        return [scale, zero_point]

    def _fake_quantize(self, x: Tensor, *state: Tensor, axis: int | None) -> Tensor:
        assert self.spec is not None
        if self._by_amax:
            return operators.fake_quantize_by_amax(x, *state, qmin=self.spec.qmin, qmax=self.spec.qmax, axis=axis)
        scale, zero_point = state
        return operators.fake_quantize_by_spec(x, scale, zero_point, self.spec, axis=axis)

    def _count(self, x: Tensor) -> int:
        """How many values one scale is for: those of a weight or of its channel, or those of one sample."""
        return x.numel() // (self.scale.numel() if isinstance(x, nn.Parameter) else x.shape[0])

    def extra_repr(self) -> str:
        """Spec and mode, for ``print(model)``."""
        return f"{self.spec or 'float'}, {self.mode.value}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """Move with the model, but keep the ranges in float32: half precision would move every grid point."""
        self._shared = None
        before = {name: getattr(self, name).detach() for name in ("scale", "amax") if hasattr(self, name)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            after: Tensor = getattr(self, name)
            if after.dtype != torch.float32:
                after.data = value.to(after.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shared": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.range = None  # whatever was collected belongs to the state that was replaced


@dataclass(frozen=True)
class _Shared:
    """A result that further readers of the same tensor are about to ask for."""

    x: Tensor
    y: Tensor
    state: tuple[object, ...]
    served: frozenset[int]


def _is_scale(scale: Tensor) -> bool:
    return bool((torch.isfinite(scale) & (scale > 0)).all())


def quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Every quantizer once, with the dotted name of its slot; one that is shared stands under its first name."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            yield name, module


def set_mode(model: nn.Module, mode: Mode) -> None:
    """Switch every quantizer of ``model``; QUANTIZE reaches the slots that have a spec, the others are off.

    Raises:
        CalibrationError: when QUANTIZE is asked for and slots are uncalibrated; all of them are named.
    """
    slots = list(quantizers(model))
    if mode is Mode.QUANTIZE:
        missing = [name for name, quantizer in slots if not quantizer.is_calibrated]
        if missing:
            raise CalibrationError(describe_problems("not calibrated", missing))
    for _, quantizer in slots:
        quantizer.mode = Mode.OFF if mode is Mode.QUANTIZE and quantizer.spec is None else mode
