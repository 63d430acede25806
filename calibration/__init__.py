"""Find the ranges of quantizers on sample data: statistics, methods that choose ranges, refinement, sensitivity.

Names are imported when they are first used: ``import calibration`` alone loads no torch. Users write
``import qdq.calibration`` or ``from qdq.calibration import Percentile``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.checkpoint import CalibratedCheckpoint, calibrate_checkpoint
    from calibration.methods.auto import Auto, method_named
    from calibration.methods.method import Entropy, Max, Method, Mse, Percentile
    from calibration.pipeline import calibrate_and_refine
    from calibration.ranges import CalibrationSummary, calibrate
    from calibration.refinement.layerwise import refine
    from calibration.refinement.smoothing import smooth
    from calibration.resume_file import ResumeFile
    from calibration.sensitivity.ranking import Ranking, analyze
    from calibration.settings import CalibrationSettings, RangeAdjustments
    from calibration.statistics.collectors import Collector, HistogramCollector, MinMaxCollector
    from calibration.statistics.token_mask import TokenMask

_HOMES = {
    "Auto": "methods.auto",
    "CalibratedCheckpoint": "checkpoint",
    "CalibrationSettings": "settings",
    "CalibrationSummary": "ranges",
    "Collector": "statistics.collectors",
    "Entropy": "methods.method",
    "HistogramCollector": "statistics.collectors",
    "Max": "methods.method",
    "Method": "methods.method",
    "MinMaxCollector": "statistics.collectors",
    "Mse": "methods.method",
    "Percentile": "methods.method",
    "RangeAdjustments": "settings",
    "Ranking": "sensitivity.ranking",
    "ResumeFile": "resume_file",
    "TokenMask": "statistics.token_mask",
    "analyze": "sensitivity.ranking",
    "calibrate": "ranges",
    "calibrate_and_refine": "pipeline",
    "calibrate_checkpoint": "checkpoint",
    "method_named": "methods.auto",
    "refine": "refinement.layerwise",
    "smooth": "refinement.smoothing",
}

__all__ = [
    "Auto",
    "CalibratedCheckpoint",
    "CalibrationSettings",
    "CalibrationSummary",
    "Collector",
    "Entropy",
    "HistogramCollector",
    "Max",
    "Method",
    "MinMaxCollector",
    "Mse",
    "Percentile",
    "RangeAdjustments",
    "Ranking",
    "ResumeFile",
    "TokenMask",
    "analyze",
    "calibrate",
    "calibrate_and_refine",
    "calibrate_checkpoint",
    "method_named",
    "refine",
    "smooth",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'calibration' has no attribute {name!r}")
    value = getattr(import_module(f"calibration.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
