"""From sample data to ranges: collectors gather, methods turn that into ranges, :func:`calibrate` runs both."""

from calibration.auto import Auto, method_named
from calibration.calibrate import CalibrationSummary, calibrate
from calibration.collectors import Collector, HistogramCollector, MinMaxCollector
from calibration.methods import Entropy, Max, Method, Mse, Percentile
from calibration.token_mask import TokenMask

__all__ = [
    "Auto",
    "CalibrationSummary",
    "Collector",
    "Entropy",
    "HistogramCollector",
    "Max",
    "Method",
    "MinMaxCollector",
    "Mse",
    "Percentile",
    "TokenMask",
    "calibrate",
    "method_named",
]
