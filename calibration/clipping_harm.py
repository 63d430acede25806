"""Judge ranges by the harm they do to the outputs of the model, not by the share of values that they clip.

A range may leave out one value in ten thousand, and with it the token on which all others depend. So the first samples
of the calibration are compared with the float model's, in up to three states:

1. with ranges that clip nothing, before refinement; not if the method clips nothing;
2. with the ranges that the method chose, before refinement; likewise;
3. in the end.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from calibration.batches import eval_mode
from calibration.methods.method import Max
from calibration.methods.noise import noise_ratio
from calibration.sensitivity.ranking import enable_only
from calibration.sensitivity.similarity import OutputVectors, Similarity, output_vectors
from calibration.statistics.collectors import HistogramCollector
from qdq.errors import CalibrationError
from qdq.quantization.quantizer import Mode, set_mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from calibration.statistics.slot_statistics import SlotStatistics
    from qdq.quantization.quantizer import Quantizer, Range

__all__ = ["HARM_SAMPLES", "Harm", "OutputCheck"]

HARM_SAMPLES = 8
"""How many samples are compared. The comparison costs a few passes over them."""

_SHOWN = 3  # slots in the record and in the message
_CLOSE = 0.98  # outputs with a larger mean cosine are close enough, whatever other ranges give
_FAR_COSINE, _FAR_DB = 0.95, 10.0  # outputs below both are far from the float model's, whatever the reason
_MORE_NOISE_DB = 3.0  # twice the noise
_VALUES = 1 << 20  # values of one output that are compared; logits of a vocabulary are many more


@dataclass(frozen=True)
class Harm:
    """Outputs that are far from those of the float model, on the first samples of the calibration.

    Args:
        samples: The number of samples.
        final: The calibrated model compared with the float model.
        whole: The same before refinement, with ranges that clip nothing; None if the method clips nothing.
        chosen: The same before refinement, with the ranges that the method chose; None if the method clips nothing.
        lost: For the slots that lose most by clipping, the share of their power that is lost; 0.1 is 10 %.
    """

    samples: int
    final: Similarity
    whole: Similarity | None = None
    chosen: Similarity | None = None
    lost: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_of_clipping(self) -> bool:
        """Whether ranges that clip nothing give clearly less noise."""
        return self.whole is not None and self.whole.sqnr_db - self.final.sqnr_db > _MORE_NOISE_DB

    @property
    def is_of_refinement(self) -> bool:
        """Whether the chosen ranges do no harm before refinement, which then adapts to what they clip."""
        return self.chosen is not None and self.chosen.sqnr_db - self.final.sqnr_db > _MORE_NOISE_DB

    @property
    def is_notable(self) -> bool:
        """Whether a user should know."""
        is_far = self.final.cosine < _FAR_COSINE and self.final.sqnr_db < _FAR_DB
        return is_far or (self.final.cosine < _CLOSE and self.is_of_clipping)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the record of the calibration, with as many digits as people need."""
        states = {"final": self.final, "without_clipping": self.whole, "without_refinement": self.chosen}
        figures = {
            name: {key: float(f"{value:.4g}") for key, value in similarity.to_dict().items()}
            for name, similarity in states.items()
            if similarity is not None
        }
        slots = {name: float(f"{share:.3g}") for name, share in self.lost.items()}
        return {"samples": self.samples, **figures, **({"power_lost": slots} if slots else {})}


class OutputCheck:
    """Compares a model that is being calibrated with its float model, on the first samples of the data."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Tensor]] = []
        self._expected: list[list[OutputVectors]] | None = None
        self._can_compare = True
        self._whole: Similarity | None = None
        self._chosen: Similarity | None = None
        self._lost: dict[str, float] = {}

    @property
    def samples(self) -> int:
        """The number of samples that are kept."""
        return sum(len(next(iter(rows.values()))) for rows in self._rows)

    def keeping(self, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
        """Yield the batches, and keep the first samples."""
        for batch in batches:
            if (missing := HARM_SAMPLES - self.samples) > 0 and batch:
                # Copies, as a view would keep the whole batch in memory.
                self._rows.append({name: tensor[:missing].clone() for name, tensor in batch.items()})
            yield batch

    def compare_ranges(self, model: nn.Module, slots: Sequence[SlotStatistics]) -> None:
        """Compare the ranges that were chosen with ranges that clip nothing. The model is unchanged afterwards.

        Args:
            model: The model, which quantizes.
            slots: The slots with their statistics.
        """
        whole, lost = {}, {}
        self._can_compare = False
        for slot in slots:
            spec, range_, collector = slot.quantizer.spec, slot.quantizer.range, slot.collector
            if spec is None or spec.dynamic or range_ is None:
                continue
            self._can_compare = True  # a recipe without static ranges leaves nothing to judge here
            # Only histograms know more than the extremes, so that a method may clip.
            if not isinstance(collector, HistogramCollector):
                continue
            unclipped = Max().range(collector, spec)
            if _is_narrower(range_, unclipped, symmetric=spec.symmetric):
                whole[slot.quantizer] = unclipped
                lost[slot.name] = noise_ratio(collector, range_, spec) - noise_ratio(collector, unclipped, spec)
        if not whole:
            return
        self._lost = dict(sorted(((n, x) for n, x in lost.items() if x > 0), key=lambda one: -one[1])[:_SHOWN])
        self._chosen = self._similarity(model)
        with _other_ranges(whole):
            self._whole = self._similarity(model)

    def judge(self, model: nn.Module, *, is_refined: bool = False) -> Harm | None:
        """Return how far the outputs are from those of the float model; None if they cannot be compared.

        Args:
            model: The calibrated model.
            is_refined: Whether it changed since :meth:`compare_ranges`.
        """
        final = self._similarity(model) if is_refined or self._chosen is None else self._chosen
        if final is None:
            return None
        return Harm(self.samples, final, self._whole, self._chosen if is_refined else None, self._lost)

    def _similarity(self, model: nn.Module) -> Similarity | None:
        """Compare the outputs of the model as it quantizes now; None if there is nothing to compare."""
        if not self._can_compare:
            return None
        try:
            with eval_mode(model), torch.inference_mode():
                if self._expected is None:
                    enable_only(model, ())
                    self._expected = [_vectors(model, rows) for rows in self._rows]
                set_mode(model, Mode.QUANTIZE)
                pairs = [(want, _vectors(model, rows)) for want, rows in zip(self._expected, self._rows, strict=True)]
        except CalibrationError:  # NaN in the outputs; activations were checked already
            self._can_compare = False
            return None
        finally:
            set_mode(model, Mode.QUANTIZE)
        total = sum((Similarity.of(want, found) for want, found in pairs), Similarity())
        self._can_compare = total.count > 0
        return total if self._can_compare else None


def _vectors(model: nn.Module, rows: Mapping[str, Tensor]) -> list[OutputVectors]:
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in rows.items()}
    output = model(**inputs)
    if not hasattr(output, "items"):  # a module of the user's own
        output = {"output": output} if isinstance(output, Tensor) else {}
    vectors = output_vectors(output, inputs.get("attention_mask"))
    return [OutputVectors(one.samples, one.values[:: -(-one.values.numel() // _VALUES) or 1]) for one in vectors]


def _is_narrower(range_: Range, whole: Range, *, symmetric: bool) -> bool:
    lower, upper = range_.bounds(symmetric=symmetric)
    lowest, highest = whole.bounds(symmetric=symmetric)
    return bool((lower > lowest).any() or (upper < highest).any())


@contextmanager
def _other_ranges(ranges: Mapping[Quantizer, Range]) -> Iterator[None]:
    """Let quantizers have other ranges inside the block."""
    before = {quantizer: quantizer.range for quantizer in ranges}
    try:
        for quantizer, range_ in ranges.items():
            quantizer.set_range(range_)
        yield
    finally:
        for quantizer, old in before.items():
            if old is not None:
                quantizer.set_range(old)
