"""Quantizers while a model is trained: when each of them quantizes, and how its range follows the training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError, ConfigError
from qdq.quantization.functional import grid, value_range
from qdq.quantization.modules import QuantLinear, set_weight_scale
from qdq.quantization.quantizer import Mode, Quantizer, Range, quantizers, set_mode
from qdq.quantization.wrap import named_slots
from qdq.training.lr_schedule import steps_of_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.training.settings import TrainingSettings

__all__ = [
    "Phase",
    "QuantizerSchedule",
    "get_ranges",
    "phase_at",
    "ready_for_training",
    "set_ranges",
    "update_ranges",
]


@dataclass(frozen=True)
class Phase:
    """What quantizers do in one step.

    Args:
        activations: Whether activations are quantized.
        weights: Whether weights are quantized.
        updates_ranges: Whether ranges and scales still change.
    """

    activations: bool
    weights: bool
    updates_ranges: bool

    @property
    def is_whole(self) -> bool:
        """Whether the model quantizes everything, as it does when it is deployed."""
        return self.activations and self.weights


def phase_at(step: int, total: int, settings: TrainingSettings) -> Phase:
    """Return the phase of step ``step`` (0 for the first) of ``total``: all in float, then activations, then weights.

    The last step always quantizes everything.
    """
    last = step >= total - 1
    return Phase(
        activations=last or step >= steps_of_share(settings.activations_from, total),
        weights=last or step >= steps_of_share(max(settings.weights_from, settings.activations_from), total),
        updates_ranges=step < steps_of_share(settings.freeze_ranges, total),
    )


def ready_for_training(model: nn.Module, *, learned: bool) -> list[str]:
    """Prepare a calibrated model for training with fake quantization.

    1. A chosen rounding of weights is dropped: it belongs to the weights before training.
    2. A bias correction is added to the bias, which is trained; a layer without bias loses its correction.
    3. Smoothing scales and shifts stay: as constants they change nothing in float, whatever the weights are.
    4. With ``learned``, static scales become Parameters that begin at their calibrated values.

    Args:
        model: A calibrated model; it is changed in place.
        learned: Whether scales are trained (LSQ).

    Returns:
        A line about each kind of change, for people.

    Raises:
        CalibrationError: If slots are not calibrated; all of them are named.
    """
    set_mode(model, Mode.QUANTIZE)
    notes = []
    rounded = [q for _, q in quantizers(model) if q.rounding is not None]
    for quantizer in rounded:
        quantizer.rounding = None
    if rounded:
        notes.append(f"the chosen rounding of {len(rounded)} weights is dropped, because the weights are trained")
    corrected = [m for m in model.modules() if isinstance(m, QuantLinear) and m.bias_correction is not None]
    for linear in corrected:
        _add_correction_to_bias(linear)
    if corrected:
        notes.append(f"{len(corrected)} bias corrections are added to the biases")
    if learned:
        count = sum(_make_learned(quantizer) for _, quantizer in quantizers(model))
        notes.append(f"{count} scales are trained")
    return notes


def _add_correction_to_bias(linear: QuantLinear) -> None:
    correction, transform = linear.bias_correction, linear.weight_quantizer.transform
    linear.bias_correction = None
    if correction is None or linear.bias is None:
        return
    if transform is not None and transform.row_scale is not None:
        # The forward pass multiplies the bias, but not the correction, by these row scales.
        correction = correction / transform.row_scale
    with torch.no_grad():
        linear.bias.add_(correction.to(linear.bias.dtype))


def _make_learned(quantizer: Quantizer) -> bool:
    """Make a static scale a Parameter; return False for a quantizer without a scale that can be trained."""
    spec = quantizer.spec
    if spec is None or spec.dynamic or spec.is_float8 or spec.group is not None or spec.arithmetic != "onnx":
        return False
    if not spec.learned_scale:
        # configure() makes new tensors without values: put the calibrated ones into them.
        scale, zero_point, range_ = quantizer.scale.clone(), quantizer.zero_point.clone(), quantizer.range
        quantizer.configure(replace(spec, learned_scale=True), shape=tuple(scale.shape))
        quantizer.to(scale.device)
        quantizer.set_scale(scale, zero_point)
        quantizer.range = range_
    return True


def get_ranges(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return lower, upper and amax of every range by its quantizer's name; a state dict does not hold them."""
    return {name: [q.range.lower, q.range.upper, q.range.amax] for name, q in quantizers(model) if q.range is not None}


def set_ranges(model: nn.Module, ranges: Mapping[str, list[Tensor]]) -> None:
    """Put back the ranges that :func:`get_ranges` returned; scales stay as they are."""
    for name, quantizer in quantizers(model):
        device = next(iter([*quantizer.parameters(), *quantizer.buffers()]), torch.empty(0)).device
        quantizer.range = Range(*(bound.to(device) for bound in ranges[name])) if name in ranges else None


def update_ranges(model: nn.Module) -> None:
    """Set every range to what its trained scale covers, so that another recipe can start from it.

    Slots that stay in float lose their range: it was found with the weights before training.
    """
    for _, quantizer in quantizers(model):
        spec = quantizer.spec
        if spec is None:
            quantizer.range = None
        # Other scales are not trained: dynamic ones are found in every call, the others follow another rule.
        if spec is None or spec.dynamic or spec.is_float8 or spec.arithmetic != "onnx" or quantizer.range is None:
            continue
        scale, zero_point = (tensor.detach() for tensor in quantizer.grid(quantizer.scale))
        lower, upper = (spec.qmin - zero_point) * scale, (spec.qmax - zero_point) * scale
        if spec.symmetric:
            amax = (spec.qmax - spec.middle) * scale
            # What was seen lies within the new limit, or is clipped to it.
            known = quantizer.range
            quantizer.range = Range(known.lower.clamp(min=-amax), known.upper.clamp(max=amax), amax)
        else:
            quantizer.range = Range(lower, upper, torch.maximum(lower.abs(), upper.abs()))


class QuantizerSchedule:
    """Switch a model's quantizers and update their ranges from step to step; for a float model do nothing.

    Args:
        model: The model that is trained, not a wrapper of it.
        total: Steps of the training.
        settings: Settings of the training.
        whole_weights: Whether weights can be read between steps; False where they are sharded.

    Raises:
        ConfigError: If scales of weights have to follow weights that are sharded.
    """

    def __init__(self, model: nn.Module, total: int, settings: TrainingSettings, *, whole_weights: bool = True) -> None:
        self.is_float = not any(q.spec is not None for _, q in quantizers(model))
        self._model = model
        self._total = total
        self._settings = settings
        self._whole_weights = whole_weights
        self._phase: Phase | None = None
        self._mask = TokenMask()
        self._hooks: list[Any] = []
        if self.is_float:
            return
        named = list(named_slots(model))
        is_weight = {q: slot.name == "weight" for slot, q in named}
        self._activations = [q for q, weight in is_weight.items() if q.spec is not None and not weight]
        weights: list[tuple[Quantizer, Any]] = [
            (q, model.get_submodule(slot.module).weight) for slot, q in named if is_weight[q] and q.spec is not None
        ]
        self._weights = dict(weights)
        self._updated = [q for q in self._activations if _is_updated(q)]
        if not whole_weights and settings.freeze_ranges > 0 and any(map(_is_updated, self._weights)):
            raise ConfigError(
                "weights are sharded (FSDP): their scales cannot follow them from step to step; train the scales "
                "(ranges learned) or freeze them from the beginning (freeze_ranges 0)"
            )

    def before_step(self, step: int) -> Phase:
        """Switch quantizers for step ``step``, 0 for the first, and return its phase."""
        phase = phase_at(step, self._total, self._settings)
        if self.is_float:
            return replace(phase, activations=True, weights=True)
        if phase != self._phase:
            self._enter(phase)
        return phase

    def after_step(self) -> None:
        """Update the scales of weights to the new weights."""
        if self.is_float or self._phase is None or not self._phase.updates_ranges or not self._phase.weights:
            return
        self._update_weight_scales()

    def quantize_all(self) -> None:
        """Switch all quantizers on, as the model is evaluated, saved and deployed."""
        if self.is_float:
            return
        if self._whole_weights and self._phase is not None and self._phase.updates_ranges and not self._phase.weights:
            self._update_weight_scales()
        set_mode(self._model, Mode.QUANTIZE)
        self._phase = None  # so that the next step enters its phase again
        self._set_hooks(wanted=False)

    def close(self) -> None:
        """Leave the model quantizing and without hooks."""
        self.quantize_all()

    def _enter(self, phase: Phase) -> None:
        before, self._phase = self._phase, phase
        if self._whole_weights and phase.weights and phase.updates_ranges and (before is None or not before.weights):
            self._update_weight_scales()
        for quantizer in self._activations:
            quantizer.mode = Mode.QUANTIZE if phase.activations else Mode.OFF
        for quantizer in self._weights:
            quantizer.mode = Mode.QUANTIZE if phase.weights else Mode.OFF
        self._set_hooks(wanted=phase.updates_ranges and self._settings.ranges == "moving")

    def _update_weight_scales(self) -> None:
        for quantizer, weight in self._weights.items():
            if _is_updated(quantizer):
                set_weight_scale(quantizer, weight)

    def _set_hooks(self, *, wanted: bool) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if wanted and self._updated:
            self._hooks = [q.register_forward_pre_hook(self._observe) for q in self._updated]
            self._hooks.append(self._model.register_forward_pre_hook(self._take_mask, with_kwargs=True))

    def _take_mask(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._mask.set(named.get("attention_mask", arguments[1] if len(arguments) > 1 else None))

    def _observe(self, quantizer: nn.Module, given: tuple[Any, ...]) -> None:
        """Move a range towards that of a batch, padding left out."""
        assert isinstance(quantizer, Quantizer)
        reader = given[1] if len(given) > 1 else 0
        # Query, key and value share a quantizer: the first reader counts. So does the first of two computations:
        # gradient checkpointing runs a layer again in the backward pass, where a graph task is active.
        if reader or not quantizer.training or torch._C._current_graph_task_id() != -1:
            return
        with torch.no_grad():
            x: Tensor = given[0]
            x = self._mask.select(x.detach() if quantizer.transform is None else quantizer.transform(x.detach()))
            if x.numel() and quantizer.spec is not None:
                lower, upper = value_range(x, quantizer.spec)
                _move(quantizer, Range(lower, upper, torch.maximum(lower.abs(), upper.abs())), self._settings.momentum)


def _is_updated(quantizer: Quantizer) -> bool:
    """Whether the scale follows a range: it is neither trained, nor dynamic, nor of another package's arithmetic."""
    spec = quantizer.spec
    return spec is not None and not spec.dynamic and not spec.learned_scale and spec.arithmetic == "onnx"


def _move(quantizer: Quantizer, seen: Range, momentum: float) -> None:
    assert quantizer.spec is not None
    known = quantizer.range
    if known is None:
        raise CalibrationError("a moving range needs one to start from: calibrate the model first")
    moved = Range(*(torch.lerp(getattr(known, n).to(getattr(seen, n)), getattr(seen, n), momentum)
                    for n in ("lower", "upper", "amax")))  # fmt: skip
    quantizer.range = moved
    scale, zero_point = grid(*moved.bounds(symmetric=quantizer.spec.symmetric), quantizer.spec)
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero_point)
