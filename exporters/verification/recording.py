"""Record what every quantizer of the checkpoint sees in one run, to compare it with the integers of a file."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.verification.double_precision import DoublePrecision
from exporters.verification.numpy_conversion import to_float32, to_numpy
from qdq.models.attention import Attention
from qdq.quantization.functional import quantize_float8
from qdq.quantization.quantizer import Mode, Quantizer, quantizers, set_mode
from qdq.quantization.spec import FLOAT8_MAX, PerTensor
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from exporters.export_model import ExportModel
    from qdq.quantization.quantizer import Recorder

__all__ = ["TIE", "Call", "RecordedTensor", "run_and_record", "run_float_outputs", "run_outputs"]

TIE = 1e-3
"""Least width, in quantization steps, of the zone around a rounding tie in which float32 noise may decide the rounding.

The noise grows with the largest value of a tensor, which is 127 steps for int8 and 448 units for float8.
"""

_NOISE = 8.0
"""How many times larger than torch's own rounding errors in a channel those of another float32 implementation may be.

Implementations add in other orders and approximate GELU and the softmax by other polynomials, but all of them work in
float32, so their errors are of one size.
"""

_FLOAT16_MAX = float(np.finfo(np.float16).max)

_COMMON_SHARE = 0.9
"""The share of channels whose rounding errors count for all channels: few rows say little about a single channel."""


@dataclass(frozen=True)
class RecordedTensor:
    """Hold what one quantizer saw.

    All tensors of a batch are in memory at once, so they are stored in small types: :meth:`with_exact` stores
    ``rounding_error`` in float16, which holds it to an eighth of ``TIE``.

    Args:
        q: The integers; for float8 its numbers.
        rounding_error: What rounding changed, in steps; for float8 in its units. NaN where the tensor was NaN.
        scale: Scale of the quantizer.
        zero_point: Zero point of the quantizer.
        float8: Whether the quantizer is of float8.
        score: For the output of a softmax, the largest magnitude of its input; 0 for everything else.
        largest: For a tensor that was smoothed or shifted, the largest magnitude before that, in the steps of each
            channel.
        noise: What the rounding errors of float32 can amount to, in steps: for the tensor or for each channel of the
            last axis. It is :data:`TIE` where it was not measured.
    """

    q: np.ndarray
    rounding_error: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    float8: bool = False
    score: float = 0.0
    largest: np.ndarray | None = None
    noise: np.ndarray | float = TIE

    @classmethod
    def of(cls, steps: np.ndarray, q: np.ndarray, scale: Any, zero_point: Any, **more: Any) -> RecordedTensor:
        """Make one from the tensor in steps and from its integers, both in float32."""
        rounding_error = steps - (q - zero_point)
        if more.get("float8"):  # its rounding errors are too large for float16
            return cls(q, rounding_error, scale, zero_point, **more)
        whole = np.nan_to_num(q).astype(np.int8 if q.min(initial=0) < 0 else np.uint8)
        return cls(whole, rounding_error, scale, zero_point, **more)

    @property
    def integers(self) -> np.ndarray:
        """The integers counted from the zero point, float32."""
        found: np.ndarray = np.where(
            np.isnan(self.rounding_error), np.float32(np.nan), self.q - self.zero_point.astype(np.float32)
        )
        return found

    @property
    def steps(self) -> np.ndarray:
        """The tensor before rounding, in steps, float32."""
        found: np.ndarray = self.integers + self.rounding_error
        return found

    def matches(self, integers: np.ndarray, rounding: float) -> np.ndarray:
        """Return which integers of a file can be explained by rounding noise.

        Args:
            integers: The integers of the file, of the shape of ``steps``.
            rounding: Rounding error of everything before, relative to the largest value; 0 for float32.
        """
        whole, steps = self.integers, self.steps
        zone: Any = rounding * float(np.abs(whole).max(initial=0))
        if self.largest is not None and rounding:
            zone = zone + rounding * self.largest  # the tensor is rounded before the transform and behind it
        if self.score and rounding:
            # The derivative of a probability p by its score is p (1 - p).
            share = np.clip(steps * self.scale, 0, 1)
            zone = zone + rounding * self.score * np.abs(steps) * (1 - share)
        if not self.float8:
            matches: np.ndarray = np.abs(integers - steps) <= 0.5 + self.noise + zone
            return matches
        zone = zone + np.maximum(self.noise, TIE * FLOAT8_MAX / 127)
        # Neighbors in float8 have no fixed distance, but rounding is monotonic: the ends of the zone bound the result.
        low, high = (_float8(steps + side * zone) for side in (-1, 1))
        return (low <= integers) & (integers <= high)

    def transposed(self, perm: tuple[int, ...] | None) -> RecordedTensor:
        """Return the same with its axes in the order of the file; None keeps them."""
        if perm is None:
            return self
        q, rounding_error = self.q.transpose(perm), self.rounding_error.transpose(perm)
        whole = self.rounding_error.shape
        largest = None if self.largest is None else np.broadcast_to(self.largest, whole).transpose(perm)
        noise = self.noise if np.ndim(self.noise) == 0 else np.broadcast_to(self.noise, whole).transpose(perm)
        return replace(self, q=q, rounding_error=rounding_error, largest=largest, noise=noise)

    def with_exact(self, steps: np.ndarray, shift: np.ndarray | float) -> RecordedTensor:
        """Return the same with the exact tensor in place of the one that was computed in float32.

        The difference of the two is the rounding error of torch's own float32, from which ``noise`` follows.

        Args:
            steps: The exact tensor in steps, float64, with any number of axes and the channels on the last one.
            shift: What was subtracted from each channel, in steps.
        """
        whole = self.integers.astype(np.float64)
        exact = steps - whole
        channels = steps.shape[-1]
        errors = np.nan_to_num(np.abs(self.rounding_error - exact), posinf=0).reshape(-1, channels)
        largest = errors.max(axis=0, initial=0)
        # Rounding errors grow with what was rounded: smoothing multiplies a channel, a shift comes after the rounding.
        magnitude = np.nan_to_num(np.abs(steps + shift), posinf=0).reshape(-1, channels).max(axis=0, initial=0)
        relative = largest / np.maximum(magnitude, np.finfo(np.float32).tiny)
        common = np.quantile(relative, _COMMON_SHARE) * magnitude
        noise = np.maximum(TIE, _NOISE * np.maximum(largest, common)).astype(np.float32)
        if not self.float8:  # values far outside the range only have to stay there
            exact = np.clip(exact, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
        return replace(self, rounding_error=exact.astype(np.float32) if self.float8 else exact, noise=noise)


def _float8(steps: np.ndarray) -> np.ndarray:
    found: np.ndarray = quantize_float8(torch.from_numpy(steps.astype(np.float32)), torch.ones(())).numpy()
    return found


Call = tuple[Quantizer, int]
"""A quantizer and the number of its call in one run of the model. REALM's scorer calls its embedder twice."""


def run_and_record(
    export_model: ExportModel, batch: Mapping[str, Tensor], *, per_token: Collection[str] = ()
) -> tuple[dict[Call, RecordedTensor], dict[str, np.ndarray]]:
    """Run the model in torch and record every call of a quantizer.

    Weights are not recorded: in the file they are constants.

    Args:
        export_model: The model.
        batch: Its inputs.
        per_token: The slots with scales per token that the file computes in integers. Others have nothing to be
            compared with.

    Returns:
        What each call saw, and the outputs by name.
    """
    model = export_model.model
    quantizing = {
        slot: quantizer
        for slot, quantizer in named_slots(model)
        if slot.name != "weight" and quantizer.mode is Mode.QUANTIZE and quantizer.spec is not None
    }
    records, outputs = _record(export_model, batch, [*quantizing.values()])
    if export_model.interface.dtype == "fp32":
        records = _with_exact_tensors(export_model, batch, records)
    compared = {
        quantizer
        for slot, quantizer in quantizing.items()
        if _is_per_tensor(quantizer) or f"{slot.module}.{slot.name}_quantizer" in per_token
    }
    return {call: record for call, record in records.items() if call[0] in compared}, outputs


def _is_per_tensor(quantizer: Quantizer) -> bool:
    return quantizer.spec is not None and quantizer.spec.granularity == PerTensor()


def _record(
    export_model: ExportModel, batch: Mapping[str, Tensor], active: Sequence[Quantizer]
) -> tuple[dict[Call, RecordedTensor], dict[str, np.ndarray]]:
    """Run the model and record what each of ``active`` sees."""
    records: dict[Call, RecordedTensor] = {}
    calls: Counter[Quantizer] = Counter()
    scores: dict[Quantizer, float] = {}

    def score_of(weights: Quantizer, head_size: int) -> Any:
        def note(module: nn.Module, given: Any, result: Tensor) -> None:  # noqa: ARG001
            scores[weights] = float(result.abs().max()) / math.sqrt(head_size)

        return note

    def recorder_of(quantizer: Quantizer) -> Any:
        def record(x: Tensor, q: Tensor) -> None:
            scale, zero_point = quantizer.grid(x)
            records[quantizer, calls[quantizer]] = RecordedTensor.of(
                (x.float() / scale).detach().numpy(),
                q.detach().numpy(),
                scale.detach().numpy(),
                zero_point.detach().numpy(),
                float8=quantizer.spec is not None and quantizer.spec.is_float8,
                score=scores.get(quantizer, 0.0),
                largest=_largest(quantizer, x, scale),
            )
            calls[quantizer] += 1

        return record

    # The scores have no quantizer of their own, so a hook notes their largest magnitude for the softmax behind them.
    hooks = [
        attention.scores.register_forward_hook(score_of(weights, attention.head_size))
        for attention in export_model.model.modules()
        if isinstance(attention, Attention)
        and isinstance(weights := getattr(attention.context, "input_quantizer", None), Quantizer)
    ]
    with _recorders({quantizer: recorder_of(quantizer) for quantizer in active}, hooks):
        outputs = export_model.run(batch)
    return records, _as_arrays(outputs)


def _with_exact_tensors(
    export_model: ExportModel, batch: Mapping[str, Tensor], records: Mapping[Call, RecordedTensor]
) -> dict[Call, RecordedTensor]:
    """Run the model in float64 with the recorded integers, and return the records with what each quantizer then sees.

    Every quantizer returns its recorded values, so that each tensor is the exact result of the integers before it.
    """
    exact: dict[Call, RecordedTensor] = {}
    calls: Counter[Quantizer] = Counter()
    double = DoublePrecision()

    def recorder_of(quantizer: Quantizer) -> Any:
        def replace_with_recorded(x: Tensor, q: Tensor) -> Tensor:  # noqa: ARG001
            call = quantizer, calls[quantizer]
            calls[quantizer] += 1
            record = records[call]
            exact[call] = record.with_exact(x.double().numpy() / record.scale, shifts[quantizer] / record.scale)
            return torch.from_numpy(record.integers.astype(np.float64) * record.scale)

        return replace_with_recorded

    def switch(*, off: bool) -> Any:
        def hook(*_: Any) -> None:
            double.is_off = off

        return hook

    # The integers of a weight must be those of float32, so its transform and scale are computed in float32.
    weights = [quantizer for slot, quantizer in named_slots(export_model.model) if slot.name == "weight"]
    hooks = [weight.register_forward_pre_hook(switch(off=True)) for weight in weights]
    hooks += [weight.register_forward_hook(switch(off=False)) for weight in weights]
    active = {quantizer for quantizer, _ in records}
    shifts = {quantizer: _shift(quantizer) for quantizer in active}
    # Not in inference mode, which forbids views of the inputs in another type.
    with _recorders({quantizer: recorder_of(quantizer) for quantizer in active}, hooks), torch.no_grad(), double:
        export_model.compute({entry.name: batch[entry.name] for entry in export_model.inputs})
    return {call: exact[call] for call in records}


def _shift(quantizer: Quantizer) -> np.ndarray | float:
    """Return what the transform of a quantizer subtracts from each channel, smoothed as the channel is."""
    transform = quantizer.transform
    if transform is None or transform.shift is None:
        return 0.0
    shift = transform.shift if transform.smoothing_scale is None else transform.shift * transform.smoothing_scale
    found: np.ndarray = shift.detach().numpy()
    return found


@contextmanager
def _recorders(recorders: Mapping[Quantizer, Recorder], hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """Set the recorders inside the block. Remove them and the hooks at its end."""
    try:
        for quantizer, recorder in recorders.items():
            quantizer.recorder = recorder
        yield
    finally:
        for quantizer in recorders:
            quantizer.recorder = None
        for hook in hooks:
            hook.remove()


def _largest(quantizer: Quantizer, x: Tensor, scale: Tensor) -> np.ndarray | None:
    """Return the largest magnitude of ``x`` before the transform of ``quantizer``, in the steps of each channel."""
    transform = quantizer.transform
    if transform is None or (transform.shift is None and transform.smoothing_scale is None):
        return None
    factor = torch.ones(x.shape[-1]) if transform.smoothing_scale is None else transform.smoothing_scale.float()
    before = x.detach().float() / factor
    if transform.shift is not None:
        before = before + transform.shift.float()
    largest: np.ndarray = (before.abs().max() * factor / scale.float()).detach().numpy()
    return largest


def run_outputs(export_model: ExportModel, batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Run the model in torch, and return the outputs in float32 or integers."""
    return _as_arrays(export_model.run(batch))


def run_float_outputs(export_model: ExportModel, batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Run the model with its quantizers off, and return the outputs."""
    model = export_model.model
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    try:
        set_mode(model, Mode.OFF)
        return run_outputs(export_model, batch)
    finally:
        for quantizer, mode in modes.items():
            quantizer.mode = mode


def _as_arrays(outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: to_float32(to_numpy(value)) for name, value in outputs.items()}
