"""Rank groups of slots by the error that quantizing them causes in the outputs.

Each group is measured twice against the float model: with only this group quantized, and with everything but it.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calibration.batches import eval_mode
from calibration.sensitivity.groups import group_slots
from calibration.sensitivity.similarity import Similarity, output_vectors
from qdq.errors import CalibrationError, describe_problems
from qdq.quantization.quantizer import Mode, quantizers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from calibration.sensitivity.groups import Group
    from calibration.sensitivity.similarity import OutputVectors
    from qdq.quantization.quantizer import Quantizer

__all__ = [
    "GroupSensitivity",
    "Ranking",
    "active_quantizers",
    "analyze",
    "enable_only",
    "measure_similarity",
    "rank",
]


@dataclass(frozen=True)
class GroupSensitivity:
    """The measurements of one group of slots.

    Args:
        group: The slots.
        alone: The similarity of the model with only this group quantized.
        without: The similarity of the model with everything but this group quantized.
        share: The share of this group in the sum of the noise of all groups alone; 0 to 1.
    """

    group: Group
    alone: Similarity
    without: Similarity
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.group.name,
            "slots": [str(slot) for slot in self.group.slots],
            "exclude": list(self.group.exclude),
            "noise_share": self.share,
            "alone": self.alone.to_dict(),
            "without": self.without.to_dict(),
        }


@dataclass(frozen=True)
class Ranking:
    """All groups, ordered from the most to the least sensitive one.

    Args:
        quantized: The similarity of the quantized model.
        rows: The measurements of each group.
        batches: The number of batches that were measured.
        samples: The number of rows in them.
    """

    quantized: Similarity
    rows: tuple[GroupSensitivity, ...]
    batches: int
    samples: int


def analyze(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, by: str = "module", only: Sequence[str] = ()
) -> Ranking:
    """Rank the slots of a calibrated model by how much accuracy each one costs. The model is restored afterwards.

    Args:
        model: A wrapped and calibrated model.
        batches: Keyword arguments of the model, tensors ``(batch, seq)``.
        by: ``slot``, ``module``, ``layer``, ``role`` or ``kind``; see
            :data:`calibration.sensitivity.groups.GROUPINGS`.
        only: Patterns of modules or slots. Other groups are not measured.

    Raises:
        CalibrationError: There is no data, the model is not calibrated, or outputs are NaN or infinite.
        RecipeError: Patterns match no quantized slot.
    """
    # Only the ranking after the last batch counts.
    last = deque(rank(model, batches, group_slots(model, by, only=only)), maxlen=1)
    if not last:
        raise CalibrationError("no data: there is no batch to measure on")
    return last[0]


def rank(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    chosen: Sequence[Group],
    *,
    step: Callable[[], None] = lambda: None,
) -> Iterator[Ranking]:
    """Yield the ranking so far after every batch, so that stopping early gives all groups, measured on less data.

    Args:
        model: A wrapped and calibrated model.
        batches: Keyword arguments of the model.
        chosen: The groups.
        step: Called after each of the ``2 * len(chosen) + 1`` quantized runs of a batch.

    Raises:
        CalibrationError: The model is not calibrated, or outputs are NaN or infinite.
    """
    everything = active_quantizers(model)
    alone = [group.quantizers for group in chosen]
    without = [everything - group.quantizers for group in chosen]
    runs = measure_similarity(model, batches, [everything, *alone, *without], step=step)
    for batch, (samples, (quantized, *figures)) in enumerate(runs, start=1):
        pairs = list(zip(chosen, figures[: len(chosen)], figures[len(chosen) :], strict=True))
        # Without any noise all shares are 0, not NaN.
        noise = sum(by_itself.noise for _, by_itself, _ in pairs) or 1.0
        rows = [GroupSensitivity(group, one, others, one.noise / noise) for group, one, others in pairs]
        yield Ranking(quantized, tuple(sorted(rows, key=lambda row: -row.share)), batch, samples)


def measure_similarity(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    configurations: Sequence[Collection[Quantizer]],
    *,
    step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, list[Similarity]]]:
    """Compare configurations of a model with the float model.

    For each batch, the float model and each configuration run once. Memory does not grow with the number of batches.

    Args:
        model: A wrapped and calibrated model.
        batches: Keyword arguments of the model.
        configurations: For each configuration, the quantizers that quantize; the others are off.
        step: Called after each run of a configuration.

    Yields:
        After every batch, the number of samples so far and the similarity of each configuration.

    Raises:
        CalibrationError: The model is not calibrated, or outputs are NaN or infinite.
    """
    device = next(model.parameters()).device
    totals = [Similarity()] * len(configurations)
    samples = 0
    with _restoring_modes(model):
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items()}
            expected = _outputs(model, inputs, (), samples)
            for index, on in enumerate(configurations):
                totals[index] += Similarity.of(expected, _outputs(model, inputs, on, samples))
                step()
            samples += len(next(iter(batch.values())))
            yield samples, list(totals)


def active_quantizers(model: nn.Module) -> frozenset[Quantizer]:
    """Return all quantizers that have a spec.

    Raises:
        CalibrationError: Some are not calibrated; all of them are named.
    """
    found = [(name, quantizer) for name, quantizer in quantizers(model) if quantizer.spec is not None]
    if missing := [name for name, quantizer in found if not quantizer.is_calibrated]:
        raise CalibrationError(describe_problems("not calibrated", missing))
    return frozenset(quantizer for _, quantizer in found)


def enable_only(model: nn.Module, on: Collection[Quantizer]) -> None:
    """Let these quantizers quantize, and switch all others off."""
    for _, quantizer in quantizers(model):
        quantizer.mode = Mode.QUANTIZE if quantizer in on else Mode.OFF


def _outputs(
    model: nn.Module, inputs: Mapping[str, Tensor], on: Collection[Quantizer], samples: int
) -> list[OutputVectors]:
    enable_only(model, on)
    # Inference mode saves the memory of autograd; nothing here is differentiated.
    with torch.inference_mode():
        output = model(**inputs)
    try:
        return output_vectors(output, inputs.get("attention_mask"))
    except CalibrationError as error:
        what = f"{len(on)} quantizers" if on else "the float model"
        raise CalibrationError(f"{error}, with {what}, in the batch after the first {samples} samples") from error


@contextmanager
def _restoring_modes(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode inside the block, and restore all modes of modules and quantizers afterwards."""
    modes = [(quantizer, quantizer.mode) for _, quantizer in quantizers(model)]
    try:
        with eval_mode(model):
            yield
    finally:
        for quantizer, mode in modes:
            quantizer.mode = mode
