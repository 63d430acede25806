"""Record what every quantizer of the checkpoint sees in one run, to compare it with the integers of a file."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.verification.numpy_conversion import to_float32, to_numpy
from qdq.models.attention import Attention
from qdq.quantization.functional import quantize_float8
from qdq.quantization.quantizer import Mode, Quantizer, quantizers, set_mode
from qdq.quantization.spec import FLOAT8_MAX, PerTensor
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor, nn

    from exporters.export_model import ExportModel

__all__ = ["TIE", "Call", "RecordedTensor", "run_and_record", "run_float_outputs", "run_outputs"]

TIE = 1e-3
"""Width, in quantization steps, of the zone around a rounding tie in which float32 noise may decide the rounding.

The noise grows with the largest value of a tensor, which is 127 steps for int8 and 448 units for float8.
"""


@dataclass(frozen=True)
class RecordedTensor:
    """Hold what one quantizer saw.

    All tensors of a batch are in memory at once, so they are stored in small types. float16 holds ``rounding_error`` to
    an eighth of ``TIE``.

    Args:
        q: The integers; for float8 its numbers.
        rounding_error: What rounding changed, in steps; for float8 in its units. NaN where the tensor was NaN.
        scale: Scale of the quantizer.
        zero_point: Zero point of the quantizer.
        float8: Whether the quantizer is of float8.
        score: For the output of a softmax, the largest magnitude of its input; 0 for everything else.
        largest: For a tensor that was smoothed or shifted, the largest magnitude before that, in the steps of each
            channel.
    """

    q: np.ndarray
    rounding_error: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    float8: bool = False
    score: float = 0.0
    largest: np.ndarray | None = None

    @classmethod
    def of(cls, steps: np.ndarray, q: np.ndarray, scale: Any, zero_point: Any, **more: Any) -> RecordedTensor:
        """Make one from the tensor in steps and from its integers, both in float32."""
        rounding_error = steps - (q - zero_point)
        if more.get("float8"):  # its rounding errors are too large for float16
            return cls(q, rounding_error, scale, zero_point, **more)
        whole = np.nan_to_num(q).astype(np.int8 if q.min(initial=0) < 0 else np.uint8)
        return cls(whole, rounding_error.astype(np.float16), scale, zero_point, **more)

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
            matches: np.ndarray = np.abs(integers - steps) <= 0.5 + TIE + zone
            return matches
        zone += TIE * FLOAT8_MAX / 127
        # Neighbors in float8 have no fixed distance, but rounding is monotonic: the ends of the zone bound the result.
        low, high = (_float8(steps + side * zone) for side in (-1, 1))
        return (low <= integers) & (integers <= high)

    def transposed(self, perm: tuple[int, ...] | None) -> RecordedTensor:
        """Return the same with its axes in the order of the file; None keeps them."""
        if perm is None:
            return self
        q, rounding_error = self.q.transpose(perm), self.rounding_error.transpose(perm)
        largest = None if self.largest is None else np.broadcast_to(self.largest, rounding_error.shape).transpose(perm)
        return replace(self, q=q, rounding_error=rounding_error, largest=largest)


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

    active = [
        quantizer
        for slot, quantizer in named_slots(export_model.model)
        if slot.name != "weight"
        and quantizer.mode is Mode.QUANTIZE
        and quantizer.spec is not None
        and (quantizer.spec.granularity == PerTensor() or f"{slot.module}.{slot.name}_quantizer" in per_token)
    ]
    # The scores have no quantizer of their own, so a hook notes their largest magnitude for the softmax behind them.
    hooks = [
        attention.scores.register_forward_hook(score_of(weights, attention.head_size))
        for attention in export_model.model.modules()
        if isinstance(attention, Attention)
        and isinstance(weights := getattr(attention.context, "input_quantizer", None), Quantizer)
    ]
    try:
        for quantizer in active:
            quantizer.recorder = recorder_of(quantizer)
        outputs = export_model.run(batch)
    finally:
        for quantizer in active:
            quantizer.recorder = None
        for hook in hooks:
            hook.remove()
    return records, _as_arrays(outputs)


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
