"""The method that chooses a method for each slot, and methods by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibration.methods.method import Entropy, Max, Method, Mse, OnHistogram, Percentile, is_a_point
from calibration.methods.noise import decibels, noise_ratio
from qdq.errors import CalibrationError

if TYPE_CHECKING:
    from calibration.statistics.collectors import HistogramCollector
    from qdq.quantization.quantizer import Range
    from qdq.quantization.spec import QuantSpec

__all__ = ["METHODS", "Auto", "method_named"]

METHODS = ("max", "percentile", "mse", "entropy", "auto")

_AS_GOOD = 1.02  # noise that is larger by this factor at most is no reason to clip


@dataclass(frozen=True)
class Auto(OnHistogram):
    """For each slot, the method whose range has the least noise by the slot's own histogram.

    Judged are, in this order, max, percentile (99.999, 99.99, 99.9), entropy and mse; of those that are within 2 % of
    the least noise the first is taken, so that nothing is clipped without gain. The noise is what quantizing this slot
    adds, relative to the slot's own power: an estimate of what the slot does to the output, which other layers may
    weigh otherwise.
    """

    name = "auto"

    def range(self, collector: HistogramCollector, spec: QuantSpec | None = None) -> Range:
        """The range of the method that :meth:`choose` names."""
        return self.choose(collector, spec)[0]

    def choose(self, collector: HistogramCollector, spec: QuantSpec | None = None) -> tuple[Range, dict[str, Any]]:
        """The range, and why: the method's name and the signal-to-noise ratio of each in decibels."""
        if is_a_point(collector):
            return Max().range(collector), {"method": Max.name}
        methods = (Max(), Percentile(99.999), Percentile(99.99), Percentile(99.9), Entropy(), Mse())
        ranges = {_title(method): method.range(collector, spec) for method in methods}
        noise = {title: noise_ratio(collector, range_, spec) for title, range_ in ranges.items()}
        title = next(title for title, ratio in noise.items() if ratio <= min(noise.values()) * _AS_GOOD)
        return ranges[title], {"method": title, "sqnr_db": {name: decibels(ratio) for name, ratio in noise.items()}}

    def to_dict(self) -> dict[str, Any]:
        """Name alone."""
        return {"name": self.name}


def _title(method: Method) -> str:
    return f"{method.name} {method.percentile}" if isinstance(method, Percentile) else method.name


def method_named(name: str, *, percentile: float = Percentile.percentile) -> Method:
    """The method of the command line's ``--calibrator``.

    Raises:
        CalibrationError: for a name that is not known, or a percentile out of range.
    """
    match name:
        case "max":
            return Max()
        case "percentile":
            return Percentile(percentile)
        case "mse":
            return Mse()
        case "entropy":
            return Entropy()
        case "auto":
            return Auto()
    raise CalibrationError(f"no calibrator {name!r}: it must be one of {', '.join(METHODS)}")
