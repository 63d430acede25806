"""From sample data to ranges: collectors gather statistics, methods choose ranges, :func:`calibrate` runs both."""

from calibration.calibrate import CalibrationSummary, calibrate
from calibration.methods.auto import Auto, method_named
from calibration.methods.method import Entropy, Max, Method, Mse, Percentile
from calibration.pipeline import calibrate_and_refine
from calibration.refinement.layerwise import refine
from calibration.refinement.smoothing import smooth
from calibration.resume_file import ResumeFile
from calibration.statistics.collectors import Collector, HistogramCollector, MinMaxCollector
from calibration.statistics.token_mask import TokenMask

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
    "ResumeFile",
    "TokenMask",
    "calibrate",
    "calibrate_and_refine",
    "method_named",
    "refine",
    "smooth",
]
