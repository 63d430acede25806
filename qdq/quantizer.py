"""The state of one quantizer: its spec, its mode, its range and the scale and zero_point that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from qdq import functional
from qdq.errors import CalibrationError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qdq.spec import QuantSpec

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


class Observer(Protocol):
    """What a quantizer shows its tensor to in mode COLLECT; see ``calibration.collectors``."""

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
        channels: length of the axis that keeps its own scales, for a per-axis spec.

    Attributes:
        scale: float32 whatever the model's type, ``()`` or ``(channels,)``; NaN until calibrated.
        zero_point: int32, the shape of ``scale``.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: QuantSpec | None = None, *, channels: int | None = None) -> None:
        super().__init__()
        self.mode = Mode.OFF
        self.observer: Observer | None = None
        self.recorder: Recorder | None = None
        self.range: Range | None = None
        self.configure(spec, channels=channels)

    def configure(self, spec: QuantSpec | None, *, channels: int | None = None) -> None:
        """Give the slot another spec; the scale starts uncalibrated."""
        self.spec = spec
        for name in ("scale", "zero_point"):
            self._buffers.pop(name, None)
        if spec is not None:
            shape = () if spec.axis is None else (channels or 0,)
            self.register_buffer("scale", torch.full(shape, torch.nan))
            self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        if spec is None and self.mode is Mode.QUANTIZE:
            self.mode = Mode.OFF

    @property
    def is_calibrated(self) -> bool:
        """Whether there is a scale to quantize with; a slot without spec needs none."""
        return self.spec is None or (self.scale.numel() > 0 and _is_scale(self.scale))

    def set_range(self, range_: Range) -> None:
        """Keep what calibration found and set scale and zero_point from it."""
        self.range = range_
        if self.spec is None:
            return
        lower, upper = (-range_.amax, range_.amax) if self.spec.symmetric else (range_.lower, range_.upper)
        self.set_scale(
            *functional.scale_and_zero_point(
                lower, upper, qmin=self.spec.qmin, qmax=self.spec.qmax, symmetric=self.spec.symmetric
            )
        )

    def set_scale(self, scale: Tensor, zero_point: Tensor) -> None:
        """Fill the buffers, in place.

        Raises:
            CalibrationError: when the shapes do not fit, a scale is not finite and positive, or a zero point is not an
                integer of the spec (of a symmetric spec: not the one that is fixed).
        """
        assert self.spec is not None, "a slot without spec has no scale"
        spec, scale = self.spec, scale.to(torch.float32)
        faults = []
        if scale.shape != self.scale.shape or zero_point.shape != self.scale.shape:
            faults.append(
                f"scale {tuple(scale.shape)}, zero_point {tuple(zero_point.shape)}: expected {tuple(self.scale.shape)}"
            )
        if not _is_scale(scale):
            faults.append("scale must be finite and positive")
        if zero_point.is_floating_point() or zero_point.is_complex():
            faults.append(f"zero_point must be whole numbers, not {zero_point.dtype}")
        elif spec.symmetric and not bool((zero_point == spec.middle).all()):
            faults.append(f"zero_point must be {spec.middle}")
        elif not bool(((zero_point >= spec.qmin) & (zero_point <= spec.qmax)).all()):
            faults.append(f"zero_point must lie in [{spec.qmin}, {spec.qmax}]")
        if faults:
            raise CalibrationError(describe_faults(f"quantizer ({spec})", faults))
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        """The integers of ``x``, in float32."""
        assert self.spec is not None, "a slot without spec has no integers"
        return functional.quantize(
            x, self.scale, self.zero_point, qmin=self.spec.qmin, qmax=self.spec.qmax, axis=self.spec.axis
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pass ``x`` on: as it is (OFF), shown to the observer (COLLECT), or rounded to the grid (QUANTIZE)."""
        if self.mode is Mode.OFF:
            return x
        if self.mode is Mode.COLLECT:
            if self.observer is not None:
                self.observer.update(x.detach())
            return x
        assert self.spec is not None, "mode QUANTIZE needs a spec"
        if self.recorder is not None:
            self.recorder(x.detach(), self.quantize(x.detach()))
        return functional.fake_quantize(
            x, self.scale, self.zero_point, qmin=self.spec.qmin, qmax=self.spec.qmax, axis=self.spec.axis
        )

    def extra_repr(self) -> str:
        """Spec and mode, for ``print(model)``."""
        return f"{self.spec or 'float'}, {self.mode.value}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """Move with the model, but keep the scale in float32: half precision would move every grid point."""
        scale = self._buffers.get("scale")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None and self.scale.dtype != torch.float32:
            self.scale = scale.to(self.scale.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.range = None  # whatever was collected belongs to the state that was replaced


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
            raise CalibrationError(describe_faults("not calibrated", missing))
    for _, quantizer in slots:
        quantizer.mode = Mode.OFF if mode is Mode.QUANTIZE and quantizer.spec is None else mode
