"""What each quantizer costs the outputs: it alone quantized, and all but it, measured against the float model."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calibration.forward import in_eval
from calibration.sensitivity.groups import groups
from calibration.sensitivity.similarity import Similarity, vectors_of
from qdq.errors import CalibrationError, describe_problems
from qdq.quantization.quantizer import Mode, quantizers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from calibration.sensitivity.groups import Group
    from calibration.sensitivity.similarity import Vectors
    from qdq.quantization.quantizer import Quantizer

__all__ = ["Ranking", "Sensitivity", "analyze", "in_use", "measured", "rank", "switch"]


@dataclass(frozen=True)
class Sensitivity:
    """One group of slots.

    Args:
        group: the slots.
        alone: the model with nothing else quantized, against float.
        without: the model with everything else quantized, against float.
        share: of the noise that all groups alone add up to, what is this one's; 0 to 1.
    """

    group: Group
    alone: Similarity
    without: Similarity
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
    """The groups from the one that costs most to the one that costs least.

    Args:
        quantized: the whole model, against float.
        rows: a group each.
        batches: that were measured.
        samples: rows in them.
    """

    quantized: Similarity
    rows: tuple[Sensitivity, ...]
    batches: int
    samples: int


def analyze(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, by: str = "module", only: Sequence[str] = ()
) -> Ranking:
    """Rank the slots of a calibrated model; modes are afterwards what they were.

    Args:
        model: wrapped and calibrated.
        batches: keyword arguments of the model, tensors ``(batch, seq)``.
        by: ``slot``, ``module``, ``layer``, ``role`` or ``kind``; see :data:`calibration.sensitivity.groups.BY`.
        only: patterns; other groups are not measured.

    Raises:
        CalibrationError: without data, for a model that is not calibrated, and for outputs that are NaN or infinite.
        RecipeError: for patterns that match no quantized slot.
    """
    last = deque(rank(model, batches, groups(model, by, only=only)), maxlen=1)
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
    """The ranking so far, after every batch: whoever stops early has all groups, measured on less.

    Args:
        model: wrapped and calibrated.
        batches: keyword arguments of the model.
        chosen: the groups.
        step: called after each of the ``2 * len(chosen) + 1`` quantized runs of a batch.
    """
    everything = in_use(model)
    alone = [group.quantizers for group in chosen]
    without = [everything - group.quantizers for group in chosen]
    runs = measured(model, batches, [everything, *alone, *without], step=step)
    for batch, (samples, (quantized, *figures)) in enumerate(runs, start=1):
        pairs = list(zip(chosen, figures[: len(chosen)], figures[len(chosen) :], strict=True))
        noise = sum(by_itself.noise for _, by_itself, _ in pairs) or 1.0
        rows = [Sensitivity(group, one, others, one.noise / noise) for group, one, others in pairs]
        yield Ranking(quantized, tuple(sorted(rows, key=lambda row: -row.share)), batch, samples)


def measured(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    configurations: Sequence[Collection[Quantizer]],
    *,
    step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, list[Similarity]]]:
    """After every batch: the samples so far, and for each configuration how close it is to the float model.

    The float model runs once a batch, each configuration once, and nothing is kept: memory does not grow.

    Args:
        model: wrapped and calibrated.
        batches: keyword arguments of the model.
        configurations: the quantizers that are on.
        step: called after each run of a configuration.

    Raises:
        CalibrationError: for a model that is not calibrated, and for outputs that are NaN or infinite.
    """
    device = next(model.parameters()).device
    totals = [Similarity()] * len(configurations)
    samples = 0
    with _undisturbed(model):
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items()}
            expected = _outputs(model, inputs, (), samples)
            for index, on in enumerate(configurations):
                totals[index] += Similarity.of(expected, _outputs(model, inputs, on, samples))
                step()
            samples += len(next(iter(batch.values())))
            yield samples, list(totals)


def in_use(model: nn.Module) -> frozenset[Quantizer]:
    """All quantizers that have a spec.

    Raises:
        CalibrationError: when some are not calibrated, all of them named.
    """
    found = [(name, quantizer) for name, quantizer in quantizers(model) if quantizer.spec is not None]
    if missing := [name for name, quantizer in found if not quantizer.is_calibrated]:
        raise CalibrationError(describe_problems("not calibrated", missing))
    return frozenset(quantizer for _, quantizer in found)


def switch(model: nn.Module, on: Collection[Quantizer]) -> None:
    """Let these quantizers quantize and switch the others off."""
    for _, quantizer in quantizers(model):
        quantizer.mode = Mode.QUANTIZE if quantizer in on else Mode.OFF


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor], on: Collection[Quantizer], samples: int) -> list[Vectors]:
    switch(model, on)
    with torch.inference_mode():
        output = model(**inputs)
    try:
        return vectors_of(output, inputs.get("attention_mask"))
    except CalibrationError as error:
        what = f"{len(on)} quantizers on" if on else "the float model"
        raise CalibrationError(f"{error}: {what}, in the batch after the first {samples} samples") from error


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module and quantizer is as it was."""
    modes = [(quantizer, quantizer.mode) for _, quantizer in quantizers(model)]
    try:
        with in_eval(model):
            yield
    finally:
        for quantizer, mode in modes:
            quantizer.mode = mode
