"""The method that chooses the best method for each slot; methods by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibration.methods.method import Entropy, HistogramMethod, Max, Method, Mse, Percentile, is_constant
from calibration.methods.noise import decibels, noise_ratio
from calibration.settings import CALIBRATORS
from qdq.errors import CalibrationError

if TYPE_CHECKING:
    from calibration.statistics.collectors import HistogramCollector
    from qdq.quantization.quantizer import Range
    from qdq.quantization.spec import QuantSpec

__all__ = ["Auto", "method_named"]

_TOLERANCE = 1.02  # a method that clips must lower the noise by more than 2 %


@dataclass(frozen=True)
class Auto(HistogramMethod):
    """For each slot, the method whose range has the least quantization noise, by the slot's own histogram.

    The candidates are, in this order, max, percentile (99.999, 99.99, 99.9), entropy and mse. The first one within 2 %
    of the least noise is taken, so that nothing is clipped without a benefit. The noise is the error of quantizing this
    slot relative to its power. That is an estimate: the layers that follow may amplify errors differently.
    """

    name = "auto"

    def range(self, collector: HistogramCollector, spec: QuantSpec | None = None) -> Range:
        """Return the range of the method that :meth:`choose` chooses."""
        return self.choose(collector, spec)[0]

    def choose(self, collector: HistogramCollector, spec: QuantSpec | None = None) -> tuple[Range, dict[str, Any]]:
        """Return the range, and the reason: the name of the method, and the SQNR of all methods in decibels."""
        if is_constant(collector):
            return Max().range(collector), {"method": Max.name}
        methods = (Max(), Percentile(99.999), Percentile(99.99), Percentile(99.9), Entropy(), Mse())
        ranges = {_title(method): method.range(collector, spec) for method in methods}
        noise = {title: noise_ratio(collector, range_, spec) for title, range_ in ranges.items()}
        title = next(title for title, ratio in noise.items() if ratio <= min(noise.values()) * _TOLERANCE)
        return ranges[title], {"method": title, "sqnr_db": {name: decibels(ratio) for name, ratio in noise.items()}}

    def to_dict(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}


def _title(method: Method) -> str:
    return f"{method.name} {method.percentile}" if isinstance(method, Percentile) else method.name


def method_named(name: str, *, percentile: float = Percentile.percentile) -> Method:
    """Return the method with a name of the option ``--calibrator``.

    Args:
        name: One of :data:`calibration.settings.CALIBRATORS`.
        percentile: The setting of the method ``percentile``; other methods do not use it.

    Raises:
        CalibrationError: The name is unknown, or the percentile is out of range.
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
    raise CalibrationError(f"no calibrator {name!r}: it must be one of {', '.join(CALIBRATORS)}")
