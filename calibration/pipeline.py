"""Everything that a recipe asks of calibration, in its order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calibration.distributed import WHOLE
from calibration.range_warnings import idle_in_float8
from calibration.ranges import calibrate
from calibration.refinement.layerwise import refine
from calibration.refinement.smoothing import smooth
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from calibration.distributed import Part
    from calibration.methods.method import Method
    from calibration.ranges import CalibrationSummary
    from calibration.resume_file import ResumeFile
    from qdq.recipes.refinement import Refinement

__all__ = ["REFINEMENT_TOKENS", "calibrate_and_refine"]

REFINEMENT_TOKENS = 16_384
"""For layer-by-layer work, samples are taken until they hold so many tokens: their hidden states stay in memory."""


def calibrate_and_refine(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]] | Callable[[], Iterable[Mapping[str, Tensor]]],
    refinement: Refinement,
    *,
    method: Method | None = None,
    part: Part = WHOLE,
    adjust: Callable[[], object] | None = None,
    stage: Callable[[str], Callable[..., object] | None] | None = None,
    resume_file: ResumeFile | None = None,
    **options: Any,
) -> CalibrationSummary:
    """Transform, find ranges, adjust them, then round and correct, as ``refinement`` says.

    Args:
        model: wrapped by ``qdq.quantize``; quantizes afterwards.
        batches: keyword arguments of the model, tensors ``(batch, seq)``: a list, or what gives the same batches each
            time that it is called.
        refinement: of the recipe.
        method: :class:`calibration.Max` when None.
        part: of several processes; see :mod:`calibration.distributed`. Layer-by-layer work is done by each of them, on
            the same samples, so that all end with the same model.
        adjust: changes ranges before weights are rounded.
        stage: called with the name of each stage, gives what that stage reports its progress to.
        resume_file: keeps what the passes over the data found, for an interrupted run to go on; see
            :mod:`calibration.resume_file`. Layer-by-layer work begins anew.
        options: further arguments of :func:`calibration.calibrate`.

    Raises:
        CalibrationError: as :func:`calibration.calibrate`, :func:`calibration.refinement.smoothing.smooth` and
            :func:`calibration.refinement.layerwise.refine` say.
    """

    def again() -> Iterable[Mapping[str, Tensor]]:
        return batches() if callable(batches) else batches

    def begin(name: str) -> Callable[..., object] | None:
        return None if stage is None else stage(name)

    done: dict[str, Any] = {}
    if refinement.transforms:
        progress = begin("channels")
        changed = smooth(
            model,
            again(),
            strength=refinement.smoothing,
            shift=refinement.shift,
            part=part,
            progress=progress,
            resume_file=resume_file,
        )
        done["transformed"] = len(changed)
    progress = begin("ranges")
    summary = calibrate(
        model,
        again(),
        method=method,
        progress=progress,  # type: ignore[arg-type]
        part=part,
        resume_file=resume_file,
        **options,
    )
    if adjust is not None:
        adjust()
    if refinement.walks:
        few = _few(again())
        changed = refine(
            model,
            few,
            rounding=refinement.rounding,
            bias_correction=refinement.bias_correction,
            clipping=refinement.clipping,
            progress=begin("layers"),
        )
        done |= {"refined": len(changed), "samples": sum(len(next(iter(batch.values()))) for batch in few)}
    warnings = [*summary.warnings, *_idle(model, refinement)]
    return replace(summary, warnings=warnings, refinement={**refinement.to_dict(), **done} if refinement else {})


def _idle(model: nn.Module, refinement: Refinement) -> list[str]:
    """What of the refinement has nothing to do for slots in float8."""
    float8 = [slot for slot, quantizer in named_slots(model) if quantizer.spec is not None and quantizer.spec.is_float8]
    linear = {name: [str(s) for s in float8 if (s.kind, s.name) == ("linear", name)] for name in ("weight", "input")}
    idle = []
    if refinement.rounding == "gptq":
        idle += idle_in_float8("rounding: gptq", linear["weight"])
    if refinement.clipping == "token-wise":
        idle += idle_in_float8("clipping: token-wise", linear["input"])
    return idle


def _few(batches: Iterable[Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    """The first batches, as many as there is room for; at least one."""
    kept: list[Mapping[str, Tensor]] = []
    tokens = 0
    for batch in batches:
        first = next(iter(batch.values()))
        tokens += first.shape[0] * first.shape[1] if first.dim() > 1 else first.numel()
        if kept and tokens > REFINEMENT_TOKENS:
            break
        kept.append(batch)
    return kept
