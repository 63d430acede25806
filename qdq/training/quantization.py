"""What happens to quantizers while a model is trained: when they quantize, and how their ranges follow."""

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
from qdq.training.schedule import steps_of

if TYPE_CHECKING:
    from qdq.training.settings import TrainingSettings

__all__ = ["Phase", "QuantizerSchedule", "keep_ranges", "phase_at", "ready_for_training"]


@dataclass(frozen=True)
class Phase:
    """What holds in one step."""

    activations: bool
    weights: bool
    follows: bool

    @property
    def is_whole(self) -> bool:
        """Whether the model computes as it will when it is deployed."""
        return self.activations and self.weights


def phase_at(step: int, total: int, settings: TrainingSettings) -> Phase:
    """What holds in step ``step`` (0 the first) of ``total``: float first, then activations, then weights.

    The last step always quantizes all.
    """
    last = step >= total - 1
    return Phase(
        activations=last or step >= steps_of(settings.activations_from, total),
        weights=last or step >= steps_of(max(settings.weights_from, settings.activations_from), total),
        follows=step < steps_of(settings.freeze_ranges, total),
    )


def ready_for_training(model: nn.Module, *, learned: bool) -> list[str]:
    """Make a calibrated, quantizing model one that can be trained; says what was changed, a line each.

    1. A chosen rounding is given up: it belongs to the weights as they were. What the weights become takes its place.
    2. A bias correction becomes part of the bias, which is trained; a layer without bias loses it.
    3. Transforms (smoothing, shifts) stay: they are constants that are neutral for any weights.
    4. With ``learned``, static scales become Parameters, in the place where calibration put them.

    Raises:
        CalibrationError: slots are not calibrated, all of them named.
    """
    set_mode(model, Mode.QUANTIZE)
    notes = []
    rounded = [q for _, q in quantizers(model) if q.rounding is not None]
    for quantizer in rounded:
        quantizer.rounding = None
    if rounded:
        notes.append(f"the chosen rounding of {len(rounded)} weights is given up: they are trained")
    corrected = [m for m in model.modules() if isinstance(m, QuantLinear) and m.bias_correction is not None]
    for linear in corrected:
        _fold_correction(linear)
    if corrected:
        notes.append(f"{len(corrected)} bias corrections are now part of the biases")
    if learned:
        count = sum(_learn(quantizer) for _, quantizer in quantizers(model))
        notes.append(f"{count} scales are trained")
    return notes


def _fold_correction(linear: QuantLinear) -> None:
    correction, transform = linear.bias_correction, linear.weight_quantizer.transform
    linear.bias_correction = None
    if correction is None or linear.bias is None:
        return
    if transform is not None and transform.row_scale is not None:  # the bias is multiplied by them
        correction = correction / transform.row_scale
    with torch.no_grad():
        linear.bias.add_(correction.to(linear.bias.dtype))


def _learn(quantizer: Quantizer) -> bool:
    """Make a static scale a Parameter; False where there is none that could be trained."""
    spec = quantizer.spec
    if spec is None or spec.dynamic or spec.is_float8 or spec.group is not None or spec.arithmetic != "onnx":
        return False
    if not spec.learned_scale:
        scale, zero_point, range_ = quantizer.scale.clone(), quantizer.zero_point.clone(), quantizer.range
        quantizer.configure(replace(spec, learned_scale=True), shape=tuple(scale.shape))
        quantizer.to(scale.device)
        quantizer.set_scale(scale, zero_point)
        quantizer.range = range_
    return True


def keep_ranges(model: nn.Module) -> None:
    """Let every range say what its scale came to, so that another recipe starts from there.

    Slots that stay float lose theirs: it was found with weights that are no more, and nobody looked since.
    """
    for _, quantizer in quantizers(model):
        spec = quantizer.spec
        if spec is None:
            quantizer.range = None
        if spec is None or spec.dynamic or spec.is_float8 or spec.arithmetic != "onnx" or quantizer.range is None:
            continue
        scale, zero_point = (part.detach() for part in quantizer.grid(quantizer.scale))
        lower, upper = (spec.qmin - zero_point) * scale, (spec.qmax - zero_point) * scale
        if spec.symmetric:
            amax = (spec.qmax - spec.middle) * scale
            known = quantizer.range
            quantizer.range = Range(known.lower.clamp(min=-amax), known.upper.clamp(max=amax), amax)
        else:
            quantizer.range = Range(lower, upper, torch.maximum(lower.abs(), upper.abs()))


class QuantizerSchedule:
    """Carries a model's quantizers through the steps of a training; does nothing for a float model.

    Args:
        model: that is trained; not a wrapper of it.
        total: steps.
        settings: of the training.
        whole_weights: whether weights can be read between steps; not so where they are sharded.
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
        self._followed = [q for q in self._activations if _is_followed(q)]
        if not whole_weights and settings.freeze_ranges > 0 and any(map(_is_followed, self._weights)):
            raise ConfigError(
                "weights are sharded (FSDP): their scales cannot follow them from step to step; train the scales "
                "(ranges learned) or freeze them from the beginning (freeze_ranges 0)"
            )

    def before_step(self, step: int) -> Phase:
        """Switch quantizers for step ``step``, 0 the first."""
        phase = phase_at(step, self._total, self._settings)
        if self.is_float:
            return replace(phase, activations=True, weights=True)
        if phase != self._phase:
            self._enter(phase)
        return phase

    def after_step(self) -> None:
        """Let the scales of weights follow."""
        if self.is_float or self._phase is None or not self._phase.follows or not self._phase.weights:
            return
        self._follow_weights()

    def deployed(self) -> None:
        """Switch everything on, as it is when the model is evaluated or saved."""
        if self.is_float:
            return
        if self._whole_weights and self._phase is not None and self._phase.follows and not self._phase.weights:
            self._follow_weights()
        set_mode(self._model, Mode.QUANTIZE)
        self._phase = None
        self._watch(wanted=False)

    def close(self) -> None:
        """Leave the model quantizing, without hooks."""
        self.deployed()

    def _enter(self, phase: Phase) -> None:
        before, self._phase = self._phase, phase
        if self._whole_weights and phase.weights and phase.follows and (before is None or not before.weights):
            self._follow_weights()
        for quantizer in self._activations:
            quantizer.mode = Mode.QUANTIZE if phase.activations else Mode.OFF
        for quantizer in self._weights:
            quantizer.mode = Mode.QUANTIZE if phase.weights else Mode.OFF
        self._watch(wanted=phase.follows and self._settings.ranges == "moving")

    def _follow_weights(self) -> None:
        for quantizer, weight in self._weights.items():
            if _is_followed(quantizer):
                set_weight_scale(quantizer, weight)

    def _watch(self, *, wanted: bool) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if wanted and self._followed:
            self._hooks = [q.register_forward_pre_hook(self._observe) for q in self._followed]
            self._hooks.append(self._model.register_forward_pre_hook(self._take_mask, with_kwargs=True))

    def _take_mask(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._mask.set(named.get("attention_mask", arguments[1] if len(arguments) > 1 else None))

    def _observe(self, quantizer: nn.Module, given: tuple[Any, ...]) -> None:
        """Move a range towards that of a batch; what padding says does not count."""
        assert isinstance(quantizer, Quantizer)
        reader = given[1] if len(given) > 1 else 0
        # a layer that is computed again in the backward pass is not counted again
        if reader or not quantizer.training or torch._C._current_graph_task_id() != -1:
            return
        with torch.no_grad():
            x: Tensor = given[0]
            x = self._mask.select(x.detach() if quantizer.transform is None else quantizer.transform(x.detach()))
            if x.numel() and quantizer.spec is not None:
                lower, upper = value_range(x, quantizer.spec)
                _move(quantizer, Range(lower, upper, torch.maximum(lower.abs(), upper.abs())), self._settings.momentum)


def _is_followed(quantizer: Quantizer) -> bool:
    """Whether the range is not trained, nor found in every call, nor one of another package's arithmetic."""
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
