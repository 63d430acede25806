"""Settings of a calibration. Importing this module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from qdq.errors import CalibrationError
from qdq.settings import check, choice, documented, flag, number, setting, whole

__all__ = ["CALIBRATORS", "CalibrationSettings", "RangeAdjustments"]

CALIBRATORS = ("max", "percentile", "mse", "entropy", "auto")


@documented
@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """Choose how ranges are found, and on how much text.

    Raises:
        CalibrationError: Settings break their rules; all of them are listed.
    """

    calibrator: str = setting(
        "max",
        "How the range of a slot is chosen. auto tries all of them and keeps, for each slot, the one with the least "
        "quantization noise.",
        choice(*CALIBRATORS),
        metavar="|".join(CALIBRATORS),
    )
    percentile: float | None = setting(
        None,
        "Percentage of the values that --calibrator percentile keeps inside the range; 99.99 by default.",
        number(50, 100, above=True).or_none(),
        metavar="P",
    )
    num_samples: int | None = setting(
        512, "Number of samples to use, drawn at random if there are more.", whole(1).or_none(), metavar="N"
    )
    seq_len: int = setting(128, "Longest sample in tokens. Longer samples are cut.", whole(3), metavar="L")
    batch_size: int = setting(8, "Samples in a batch.", whole(1), metavar="B")
    seed: int = setting(0, "Seed for drawing the samples.", whole(0), option=None)

    def __post_init__(self) -> None:
        def between() -> list[str]:
            if self.percentile is None or self.calibrator == "percentile":
                return []
            return [f"--percentile goes with --calibrator percentile; {self.calibrator} does not use it"]

        check(self, "settings of the calibration", between, CalibrationError)


@documented
@dataclass(frozen=True, kw_only=True)
class RangeAdjustments:
    """Choose how ranges are changed after they were found, as NVIDIA's quantization trainer for BERT does.

    Raises:
        CalibrationError: ``clip_gelu`` is not a positive number.
    """

    fuse_qkv: bool = setting(
        False,
        "Give query, key and value of each attention one range, the largest of the three; also their weights if "
        "these are quantized per tensor.",
        flag(),
    )
    clip_gelu: float | None = setting(
        None,
        "Limit the range of each feed-forward activation to magnitudes of at most X; 10 is usual.",
        number(0, above=True).or_none(),
        metavar="X",
    )
    recalibrate_weights: bool = setting(
        False, "Set the ranges of weights anew from the weights. Every calibration does so already.", flag()
    )

    def __post_init__(self) -> None:
        check(self, "adjustments of ranges", error=CalibrationError)
