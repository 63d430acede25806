"""From sample data to ranges: collectors gather, methods turn that into ranges, :func:`calibrate` runs both."""

from calibration.auto import Auto, method_named
from calibration.calibrate import CalibrationSummary, calibrate
from calibration.collectors import Collector, HistogramCollector, MinMaxCollector
from calibration.journal import Journal
from calibration.methods import Entropy, Max, Method, Mse, Percentile
from calibration.pipeline import calibrate_and_refine
from calibration.refine import refine
from calibration.smoothing import smooth
from calibration.token_mask import TokenMask

__all__ = [
    "Auto",
    "CalibrationSummary",
    "Collector",
    "Entropy",
    "HistogramCollector",
    "Journal",
    "Max",
    "Method",
    "MinMaxCollector",
    "Mse",
    "Percentile",
    "TokenMask",
    "calibrate",
    "calibrate_and_refine",
    "method_named",
    "refine",
    "smooth",
]
