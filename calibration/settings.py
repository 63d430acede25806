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
    """The settings of a calibration: how ranges are chosen, and from how much text.

    Raises:
        CalibrationError: Settings break their rules; all of them are listed.
    """

    calibrator: str = setting(
        "max",
        "Method that chooses the range of a slot from its statistics. auto tries all others and keeps, for each slot, "
        "the one with the least quantization noise.",
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
        512,
        "Largest number of samples to use. If the data has more, they are drawn at random.",
        whole(1).or_none(),
        metavar="N",
    )
    seq_len: int = setting(128, "Longest input in tokens. Longer ones are cut.", whole(3), metavar="L")
    batch_size: int = setting(8, "Number of samples in a batch.", whole(1), metavar="B")
    seed: int = setting(0, "Seed of the choice of samples.", whole(0), option=None)

    def __post_init__(self) -> None:
        def between() -> list[str]:
            if self.percentile is None or self.calibrator == "percentile":
                return []
            return [f"--percentile goes with --calibrator percentile; {self.calibrator} does not use it"]

        check(self, "settings of the calibration", between, CalibrationError)


@documented
@dataclass(frozen=True, kw_only=True)
class RangeAdjustments:
    """Changes to ranges after calibration, as NVIDIA's quantization trainer for BERT makes them.

    Raises:
        CalibrationError: ``clip_gelu`` is not a positive number.
    """

    fuse_qkv: bool = setting(
        False,
        "Give query, key and value of each attention the same range, the largest of the three. This includes their "
        "weights if these are quantized per tensor.",
        flag(),
    )
    clip_gelu: float | None = setting(
        None,
        "Limit the range behind the activation function of each feed-forward to [-X, X]; 10 is usual.",
        number(0, above=True).or_none(),
        metavar="X",
    )
    recalibrate_weights: bool = setting(
        False,
        "Compute the ranges of weights from the weights. Every calibration does so already; the option exists for "
        "scripts that were written for NVIDIA's trainer.",
        flag(),
    )

    def __post_init__(self) -> None:
        check(self, "adjustments of ranges", error=CalibrationError)
