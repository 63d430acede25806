"""What every quantizer of the checkpoint saw in one run, and whether a file's integers fit it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.verification.arrays import array_of, wide
from qdq.models.attention import Attention
from qdq.quantization.functional import quantize_float8
from qdq.quantization.quantizer import Mode, Quantizer, quantizers, set_mode
from qdq.quantization.spec import FLOAT8_MAX, PerTensor
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor, nn

    from exporters.export_model import Deployed

__all__ = ["TIE", "Call", "Record", "float_outputs", "outputs_of", "record_run"]

TIE = 1e-3
"""Width, in quantization steps, of the zone around a tie in which float32 noise may decide the rounding.

Noise grows with the largest value of a tensor, for which int8 has 127 steps, float8 448 of its units.
"""


@dataclass(frozen=True)
class Record:
    """What one quantizer saw: its integers ``q``, what rounding took from the tensor in steps, and the grid.

    Of float8 the steps are its units, and the integers its numbers. ``score`` is, of what comes out of a softmax, the
    largest magnitude of what went in; 0 of everything else. ``largest`` is, of a tensor that was transformed, what its
    largest magnitude before that would be in the steps of each channel: it was rounded as that tensor is.

    All records of a batch are held at once, so they are small: ``rest`` is known in float16 to an eighth of ``TIE``.
    """

    q: np.ndarray
    rest: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    float8: bool = False
    score: float = 0.0
    largest: np.ndarray | None = None

    @classmethod
    def of(cls, steps: np.ndarray, q: np.ndarray, scale: Any, zero_point: Any, **more: Any) -> Record:
        """A record of ``steps`` and ``q`` in float32; NaN, which ``q`` cannot hold, is in ``rest``."""
        rest = steps - (q - zero_point)
        if more.get("float8"):  # whose steps are too wide for a smaller rest
            return cls(q, rest, scale, zero_point, **more)
        whole = np.nan_to_num(q).astype(np.int8 if q.min(initial=0) < 0 else np.uint8)
        return cls(whole, rest.astype(np.float16), scale, zero_point, **more)

    @property
    def integers(self) -> np.ndarray:
        """Counted from the zero point, float32."""
        found: np.ndarray = np.where(
            np.isnan(self.rest), np.float32(np.nan), self.q - self.zero_point.astype(np.float32)
        )
        return found

    @property
    def steps(self) -> np.ndarray:
        """The tensor in steps, float32."""
        found: np.ndarray = self.integers + self.rest
        return found

    def near(self, integers: np.ndarray, rounding: float) -> np.ndarray:
        """Which of the file's ``integers`` are what a value rounds to that torch's noise could have made.

        Args:
            integers: the shape of ``steps``.
            rounding: of what precedes, relative to the largest value.
        """
        whole, steps = self.integers, self.steps
        zone: Any = rounding * float(np.abs(whole).max(initial=0))
        if self.largest is not None and rounding:
            zone = zone + rounding * self.largest  # there are roundings before the transform and behind it
        if self.score and rounding:
            # By as much as scores are off, relative to 1, is a probability p off relative to 1 - p.
            share = np.clip(steps * self.scale, 0, 1)
            zone = zone + rounding * self.score * np.abs(steps) * (1 - share)
        if not self.float8:
            near: np.ndarray = np.abs(integers - steps) <= 0.5 + TIE + zone
            return near
        zone += TIE * FLOAT8_MAX / 127
        # Rounding never turns an order around, whatever the distance of the neighbours.
        low, high = (_float8(steps + side * zone) for side in (-1, 1))
        return (low <= integers) & (integers <= high)

    def transposed(self, perm: tuple[int, ...] | None) -> Record:
        """The same with its axes in the file's order; None: as they are."""
        if perm is None:
            return self
        q, rest = self.q.transpose(perm), self.rest.transpose(perm)
        largest = None if self.largest is None else np.broadcast_to(self.largest, rest.shape).transpose(perm)
        return replace(self, q=q, rest=rest, largest=largest)


def _float8(steps: np.ndarray) -> np.ndarray:
    found: np.ndarray = quantize_float8(torch.from_numpy(steps.astype(np.float32)), torch.ones(())).numpy()
    return found


Call = tuple[Quantizer, int]
"""A quantizer, and which of its calls in one run of the model it is: REALM's scorer calls its embedder twice."""


def record_run(
    deployed: Deployed, batch: Mapping[str, Tensor], *, per_token: Collection[str] = ()
) -> tuple[dict[Call, Record], dict[str, np.ndarray]]:
    """Run torch and keep the integers of every call of a quantizer, and the outputs.

    Args:
        deployed: the model in its form.
        batch: its inputs.
        per_token: the slots whose scales per token a file has beside integers; where it computes in float there is
            nothing to compare them with.
    """
    records: dict[Call, Record] = {}
    calls: Counter[Quantizer] = Counter()
    scores: dict[Quantizer, float] = {}

    def score_of(weights: Quantizer, head_size: int) -> Any:
        def note(module: nn.Module, given: Any, result: Tensor) -> None:  # noqa: ARG001
            scores[weights] = float(result.abs().max()) / math.sqrt(head_size)

        return note

    def recorder_of(quantizer: Quantizer) -> Any:
        def record(x: Tensor, q: Tensor) -> None:
            scale, zero_point = quantizer.grid(x)
            records[quantizer, calls[quantizer]] = Record.of(
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

    # Weights are constants of the file.
    active = [
        quantizer
        for slot, quantizer in named_slots(deployed.model)
        if slot.name != "weight"
        and quantizer.mode is Mode.QUANTIZE
        and quantizer.spec is not None
        and (quantizer.spec.granularity == PerTensor() or f"{slot.module}.{slot.name}_quantizer" in per_token)
    ]
    hooks = [
        attention.scores.register_forward_hook(score_of(weights, attention.head_size))
        for attention in deployed.model.modules()
        if isinstance(attention, Attention)
        and isinstance(weights := getattr(attention.context, "input_quantizer", None), Quantizer)
    ]
    try:
        for quantizer in active:
            quantizer.recorder = recorder_of(quantizer)
        outputs = deployed.run(batch)
    finally:
        for quantizer in active:
            quantizer.recorder = None
        for hook in hooks:
            hook.remove()
    return records, _as_arrays(outputs)


def _largest(quantizer: Quantizer, x: Tensor, scale: Tensor) -> np.ndarray | None:
    """The largest magnitude of what the transform of ``quantizer`` made ``x`` of, in the steps of each channel."""
    transform = quantizer.transform
    if transform is None or (transform.shift is None and transform.smoothing_scale is None):
        return None
    factor = torch.ones(x.shape[-1]) if transform.smoothing_scale is None else transform.smoothing_scale.float()
    before = x.detach().float() / factor
    if transform.shift is not None:
        before = before + transform.shift.float()
    largest: np.ndarray = (before.abs().max() * factor / scale.float()).detach().numpy()
    return largest


def outputs_of(deployed: Deployed, batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """What torch finds, in float32 or whole numbers."""
    return _as_arrays(deployed.run(batch))


def float_outputs(deployed: Deployed, batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The same model with its quantizers off."""
    model = deployed.model
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    try:
        set_mode(model, Mode.OFF)
        return outputs_of(deployed, batch)
    finally:
        for quantizer, mode in modes.items():
            quantizer.mode = mode


def _as_arrays(outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: wide(array_of(value)) for name, value in outputs.items()}
