"""Everything that a recipe asks of calibration, in order: smooth, find ranges, refine layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calibration.distributed import SINGLE_PROCESS
from calibration.range_warnings import float8_warnings
from calibration.ranges import find_ranges, judged
from calibration.refinement.layerwise import refine
from calibration.refinement.smoothing import smooth
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from calibration.distributed import ProcessRank
    from calibration.methods.method import Method
    from calibration.ranges import CalibrationSummary
    from calibration.resume_file import ResumeFile
    from qdq.recipes.refinement import Refinement

__all__ = ["REFINEMENT_TOKENS", "calibrate_and_refine"]

REFINEMENT_TOKENS = 16_384
"""How many tokens layer-wise refinement uses at most; their hidden states stay in memory."""


def calibrate_and_refine(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]] | Callable[[], Iterable[Mapping[str, Tensor]]],
    refinement: Refinement,
    *,
    method: Method | None = None,
    process: ProcessRank = SINGLE_PROCESS,
    adjust: Callable[[], object] | None = None,
    stage: Callable[[str], Callable[..., object] | None] | None = None,
    resume_file: ResumeFile | None = None,
    **options: Any,
) -> CalibrationSummary:
    """Smooth activations, find ranges, then round weights and correct biases, as ``refinement`` says.

    Args:
        model: A model wrapped by ``qdq.quantize``. It quantizes afterwards.
        batches: Keyword arguments of the model, tensors ``(batch, seq)``: a list, or a function that returns the same
            batches each time.
        refinement: The refinements of the recipe.
        method: The method that chooses the ranges; None for :class:`calibration.Max`.
        process: Which of several processes this is, if they share the work; see :mod:`calibration.distributed`. Each of
            them does the layer-wise work, on the same samples, so that all end with the same model.
        adjust: Called to change ranges after they were found and before weights are rounded.
        stage: Called with the name of each stage (``channels``, ``ranges``, ``layers``). It returns what that stage
            reports its progress to, or None.
        resume_file: Keeps what the passes over the data found, so that an interrupted run can be resumed; see
            :mod:`calibration.resume_file`. Layer-wise work starts from the beginning.
        **options: Further arguments of :func:`calibration.calibrate`.

    Raises:
        CalibrationError: As for :func:`calibration.calibrate`, :func:`calibration.smooth` and
            :func:`calibration.refine`.
    """

    def data() -> Iterable[Mapping[str, Tensor]]:
        return batches() if callable(batches) else batches

    def progress_of(name: str) -> Callable[..., object] | None:
        return None if stage is None else stage(name)

    # The order matters: transforms change the values that ranges are for, and rounding needs the ranges.
    done: dict[str, Any] = {}
    if refinement.has_transforms:
        progress = progress_of("channels")
        changed = smooth(
            model,
            data(),
            strength=refinement.smoothing,
            shift=refinement.shift,
            process=process,
            progress=progress,
            resume_file=resume_file,
        )
        done["transformed"] = len(changed)
    progress = progress_of("ranges")
    summary, check = find_ranges(
        model,
        data(),
        method=method,
        progress=progress,  # type: ignore[arg-type]
        process=process,
        resume_file=resume_file,
        **options,
    )
    if adjust is not None:
        adjust()
    if refinement.is_layerwise:
        # Layer-wise work keeps hidden states in memory, so it uses only the first batches.
        samples = _first_batches(data())
        changed = refine(
            model,
            samples,
            rounding=refinement.rounding,
            bias_correction=refinement.bias_correction,
            clipping=refinement.clipping,
            progress=progress_of("layers"),
        )
        done |= {"refined": len(changed), "samples": sum(len(next(iter(batch.values()))) for batch in samples)}
    harm = check.judge(model, is_refined=refinement.is_layerwise or adjust is not None)
    summary = judged(summary, harm)
    warnings = [*summary.warnings, *_refinement_warnings(model, refinement)]
    return replace(summary, warnings=warnings, refinement={**refinement.to_dict(), **done} if refinement else {})


def _refinement_warnings(model: nn.Module, refinement: Refinement) -> list[str]:
    """Return warnings about refinements that do not change slots in float8."""
    float8 = [slot for slot, quantizer in named_slots(model) if quantizer.spec is not None and quantizer.spec.is_float8]
    linear = {name: [str(s) for s in float8 if (s.kind, s.name) == ("linear", name)] for name in ("weight", "input")}
    warnings = []
    if refinement.rounding == "gptq":
        warnings += float8_warnings("rounding: gptq", linear["weight"])
    if refinement.clipping == "token-wise":
        warnings += float8_warnings("clipping: token-wise", linear["input"])
    return warnings


def _first_batches(batches: Iterable[Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    """Return the first batches, at least one, with at most :data:`REFINEMENT_TOKENS` tokens."""
    kept: list[Mapping[str, Tensor]] = []
    tokens = 0
    for batch in batches:
        first = next(iter(batch.values()))
        tokens += first.shape[0] * first.shape[1] if first.dim() > 1 else first.numel()
        if kept and tokens > REFINEMENT_TOKENS:
            break
        kept.append(batch)
    return kept
