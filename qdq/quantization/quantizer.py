"""Quantizers: modules with a spec, a mode, a range, and the scale and zero point that follow from these."""

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
    """What a quantizer does with a tensor."""

    OFF = "off"
    COLLECT = "collect"
    QUANTIZE = "quantize"


@dataclass(frozen=True)
class Range:
    """The range of a tensor that calibration found, from which the scale of *any* spec follows.

    All are float32, ``()`` or ``(channels,)``. ``amax`` has a value of its own, because a percentile of ``|x|`` differs
    from the larger of the two one-sided percentiles.

    Args:
        lower: The lowest value, for affine specs.
        upper: The highest value, for affine specs.
        amax: The largest magnitude, for symmetric specs.
    """

    lower: Tensor
    upper: Tensor
    amax: Tensor

    @classmethod
    def covering(cls, ranges: Sequence[Range]) -> Range:
        """Return the smallest range that covers all of the given ones, of which there is at least one."""
        lower, upper, amax = (torch.stack([getattr(r, name) for r in ranges]) for name in ("lower", "upper", "amax"))
        return cls(lower.amin(0), upper.amax(0), amax.amax(0))

    def bounds(self, *, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value to represent."""
        return (-self.amax, self.amax) if symmetric else (self.lower, self.upper)


class Observer(Protocol):
    """Gets the tensors of a quantizer in mode COLLECT; see ``calibration.statistics.collectors``."""

    def update(self, x: Tensor) -> None:
        """Add the values of ``x``."""


class Recorder(Protocol):
    """Gets the integers of a quantizer in mode QUANTIZE, for verification."""

    def __call__(self, x: Tensor, q: Tensor) -> Tensor | None:
        """Record the tensor ``x`` and its integers ``q``, which are float32.

        Returns:
            What the quantizer returns in place of its own result; None for its own.
        """


class Quantizer(nn.Module):
    """The quantizer in one slot of a wrapped module.

    A slot that the recipe does not mention has a quantizer without a spec, which returns its input and has no state.
    Its range is still collected, so that the checkpoint can be exported with another recipe later.

    Args:
        spec: How to quantize; None for a slot that stays float.
        shape: The shape of the scale, from ``spec.scale_shape``; () per tensor.

    Attributes:
        scale: float32 whatever the type of the model, of the shape above; NaN until calibrated. It is a Parameter if
            the spec says ``learned_scale``, and absent if the range is dynamic.
        zero_point: int32, of the shape of ``scale``; absent if the range is dynamic.
        amax: float32, of the shape of ``scale``; only for the arithmetic of pytorch-quantization.
        transform: What is applied to the tensor first, in every mode, or None. The range is that of the result.
        rounding: For weights whose rounding was chosen: the steps to add before rounding, int8, of the shape of the
            weight; or None.
        readers: The number of modules that pass the same tensor to this quantizer, which quantizes it once for all.
    """

    stored_apart: ClassVar[bool] = True  # a learned scale is a Parameter, but not a weight of the float model
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
        """Set another spec. The scale becomes uncalibrated, the transform stays.

        Args:
            spec: How to quantize; None for a slot that stays float.
            shape: The shape of the scale.
        """
        self.spec = spec
        self.rounding = None
        for name in ("scale", "zero_point", "amax"):
            self._buffers.pop(name, None)
            self._parameters.pop(name, None)
        if spec is not None and not spec.dynamic:
            # NaN marks a scale that is not calibrated. Buffers exist from the start, so keys of state dicts are stable.
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
        """Whether the quantizer can quantize. One without a spec or with a dynamic range needs no calibration."""
        if self.spec is None or self.spec.dynamic:
            return True
        scale = self.scale.abs() if self.spec.learned_scale else self.scale
        return scale.numel() > 0 and _is_scale(scale)

    def set_range(self, range_: Range) -> None:
        """Set the range that calibration found, and the scale and zero point that follow from it."""
        self.range = range_
        if self.spec is None or self.spec.dynamic:
            return
        if self.spec.arithmetic != "onnx":
            self.set_amax(range_.amax)
        self.set_scale(*functional.grid(*range_.bounds(symmetric=self.spec.symmetric), self.spec))

    def set_amax(self, amax: Tensor) -> None:
        """Set the range for the arithmetic of pytorch-quantization; :meth:`set_scale` sets the rest.

        Raises:
            CalibrationError: The shape is wrong, or values are negative or not finite.
        """
        if amax.shape != self.amax.shape or not bool((torch.isfinite(amax) & (amax >= 0)).all()):
            shape = tuple(self.amax.shape)
            raise CalibrationError(f"quantizer ({self.spec}): amax must be finite, not negative, and of shape {shape}")
        self.amax.copy_(amax)

    def set_scale(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set the scale and zero point, in place.

        Args:
            scale: Finite and positive, of the shape of :attr:`scale`.
            zero_point: Integers of the spec, of the same shape. A symmetric spec has only one possible zero point.

        Raises:
            CalibrationError: A value breaks these rules; all problems are named.
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
        """Turn a learned scale into a constant of the same value."""
        if self.spec is None or not self.spec.learned_scale:
            return
        scale, zero_point = (part.detach() for part in self.grid(self.scale))
        rounding = self.rounding  # configure() would remove it
        self.configure(replace(self.spec, learned_scale=False), shape=tuple(scale.shape))
        self.rounding = rounding
        self.to(scale.device)
        self.set_scale(scale, zero_point)

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point for ``x``: the calibrated ones, or with a dynamic range those of ``x``."""
        assert self.spec is not None, "a slot without spec has no grid"
        if self.spec.learned_scale:
            # A training step may move the Parameter through zero, so use its magnitude.
            return self.scale.abs().clamp_min(torch.finfo(torch.float32).tiny), self.zero_point
        if not self.spec.dynamic:
            return self.scale, self.zero_point
        return functional.grid(*functional.value_range(x, self.spec), self.spec)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the integers (or float8 numbers) of ``x``, which is transformed already, in float32."""
        assert self.spec is not None, "a slot without spec has no integers"
        spec, (scale, zero_point) = self.spec, self.grid(x)
        if spec.is_float8:
            return functional.quantize_float8(x, scale, axis=spec.axis)
        return functional.quantize(
            x, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=spec.axis, group=spec.group
        )

    def prepared(self, x: Tensor) -> Tensor:
        """Return ``x`` before it is quantized: transformed, and shifted by the steps of a chosen rounding."""
        if self.transform is not None:
            x = self.transform(x)
        if self.rounding is not None and self.mode is Mode.QUANTIZE:
            # Adding whole steps before rounding to the nearest selects the chosen integers.
            assert self.spec is not None, "steps without a grid"
            scale = self.grid(x)[0].detach().to(x.dtype)
            x = x + functional.expand_parameter(scale, x, axis=self.spec.axis, group=self.spec.group) * self.rounding
        return x

    def forward(self, x: Tensor, reader: int = 0) -> Tensor:
        """Return ``x`` transformed; mode COLLECT also shows it to the observer, mode QUANTIZE quantizes it.

        Args:
            x: The tensor of the slot.
            reader: Which of the ``readers`` calls, 0 and up. The result of the first reader is returned to the others
                too, if they pass the same tensor. A reader that calls again gets a new result.
        """
        if self.mode is Mode.OFF and self.transform is None:
            return x
        if self.readers == 1 or torch.compiler.is_compiling():  # compilers remove duplicate computations themselves
            return self._compute(x)
        state = self._state_of(x)
        shared = self._shared
        if shared is not None and shared.x is x and shared.state == state and reader not in shared.served:
            served = shared.served | {reader}
            # Drop the result after the last reader, so that its memory is freed.
            self._shared = replace(shared, served=served) if len(served) < self.readers else None
            return shared.y
        y = self._compute(x)
        self._shared = _Shared(x, y, state, frozenset([reader]))
        return y

    def _state_of(self, x: Tensor) -> tuple[object, ...]:
        """Return what a result depends on besides the identity of ``x``: versions of tensors, and modes."""
        extra = () if self.transform is None else self.transform._buffers.values()
        tensors = [x, *self._buffers.values(), *self._parameters.values(), *extra]
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors if tensor is not None]
        return (*versions, torch.is_grad_enabled(), self.mode)

    def look_up(self, table: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """Return ``self(table)[ids]`` in mode QUANTIZE, but quantize only the rows that are looked up.

        Args:
            table: ``(entries, hidden)``.
            ids: ``(batch, seq)``.
            rows: ``table[ids]``, ``(batch, seq, hidden)``.
        """
        spec = self.spec
        assert spec is not None, "a slot without spec has nothing to look up"
        if spec.axis is not None and spec.axis % 2:  # one scale for each column, the same for all rows
            return self._fake_quantize(rows, *self._parameters_for(table), axis=-1)
        # Scales of rows or of groups in rows are looked up like the rows themselves.
        by_row = spec.axis is not None or spec.group is not None
        state = [part[ids] for part in self._parameters_for(table)] if by_row else self._parameters_for(table)
        if spec.axis is not None:
            state = [part.unsqueeze(-1) for part in state]
        return self._fake_quantize(rows, *state, axis=None)

    def _compute(self, x: Tensor) -> Tensor:
        x = self.prepared(x)
        if self.mode is Mode.OFF:
            return x
        if self.mode is Mode.COLLECT:
            if self.observer is not None:
                self.observer.update(x.detach() if x.requires_grad else x)
            return x
        assert self.spec is not None, "mode QUANTIZE needs a spec"
        if self.recorder is not None:
            replacement = self.recorder(x.detach(), self.quantize(x.detach()))
            if replacement is not None:
                return replacement
        # As one node it can be exported as a whole, for example as DynamicQuantizeLinear of ONNX.
        if self.spec.dynamic and self.spec.axis is None and torch.compiler.is_exporting():
            return operators.dynamic_fake_quantize(
                x,
                qmin=self.spec.qmin,
                qmax=self.spec.qmax,
                symmetric=self.spec.symmetric and not self.spec.starts_at_zero,
                per_token=isinstance(self.spec.granularity, PerToken),
            )
        return self._fake_quantize(x, *self._parameters_for(x), axis=self.spec.axis)

    @property
    def _by_amax(self) -> bool:
        """Whether to compute as pytorch-quantization does. Exported graphs always use the arithmetic of ONNX."""
        return self.spec is not None and self.spec.arithmetic != "onnx" and not torch.compiler.is_exporting()

    def _parameters_for(self, x: Tensor) -> Sequence[Tensor]:
        """Return the scale and zero point for ``x``, or the amax."""
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
        """Return how many values one scale serves: those of a weight or of its channel, or those of one sample."""
        return x.numel() // (self.scale.numel() if isinstance(x, nn.Parameter) else x.shape[0])

    def extra_repr(self) -> str:
        """Return the spec and the mode, for ``print(model)``."""
        return f"{self.spec or 'float'}, {self.mode.value}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """Move with the model, but keep scales in float32: in half precision every quantized value would change."""
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
        self.range = None  # the range belongs to the state that was replaced


@dataclass(frozen=True)
class _Shared:
    """A result for further readers of the same tensor.

    Args:
        x: The tensor.
        y: The result.
        state: What else the result depends on.
        served: The readers that have it.
    """

    x: Tensor
    y: Tensor
    state: tuple[object, ...]
    served: frozenset[int]


def _is_scale(scale: Tensor) -> bool:
    return bool((torch.isfinite(scale) & (scale > 0)).all())


def quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Yield every quantizer once, with the dotted name of its slot; for a shared quantizer, of its first slot."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            yield name, module


def set_mode(model: nn.Module, mode: Mode) -> None:
    """Set the mode of every quantizer of a model. With QUANTIZE, slots without a spec are off.

    Args:
        model: A wrapped model.
        mode: The mode.

    Raises:
        CalibrationError: The mode is QUANTIZE and slots are not calibrated; all of them are named.
    """
    slots = list(quantizers(model))
    if mode is Mode.QUANTIZE:
        missing = [name for name, quantizer in slots if not quantizer.is_calibrated]
        if missing:
            raise CalibrationError(describe_problems("not calibrated", missing))
    for _, quantizer in slots:
        quantizer.mode = Mode.OFF if mode is Mode.QUANTIZE and quantizer.spec is None else mode
