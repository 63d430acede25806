"""From sample data to ranges: collectors gather, methods turn that into ranges, :func:`calibrate` runs both."""

from calibration.calibrate import CalibrationSummary, calibrate
from calibration.collectors import Collector, HistogramCollector, MinMaxCollector, TokenMask
from calibration.methods import Max, Method, Percentile, method_named

__all__ = [
    "CalibrationSummary",
    "Collector",
    "HistogramCollector",
    "Max",
    "Method",
    "MinMaxCollector",
    "Percentile",
    "TokenMask",
    "calibrate",
    "method_named",
]
