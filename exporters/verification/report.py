"""The report of a verification, and the bounds that the outputs must keep."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from exporters.verification.similarity import EQUAL_DB

if TYPE_CHECKING:
    from exporters.onnx.saturation import SaturationCount

__all__ = ["Bounds", "OutputComparison", "Segment", "VerificationReport"]

_TWICE_DB = 10 * math.log10(2)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Set the bounds for every output of every batch, end to end.

    One value that rounds to the other neighbor in an early layer is amplified by the layers behind it, but the
    distance to the float model stays the same. A wrong scale, a missing quantizer or a saturating kernel changes it.

    Args:
        sqnr_db: Smallest SQNR of the file to the checkpoint in torch.
        cosine: Smallest cosine of the file to the checkpoint in torch.
        float_loss_db: How far the SQNR of the file to the float model may lie below that of the checkpoint.
        independent: Whether file and checkpoint round independently, as in half precision, where they add in different
            orders. Their quantization noise then has the same size but is not the same, so that the two may be as far
            apart as both together are from the float model.
    """

    sqnr_db: float = 10.0
    cosine: float = 0.95
    float_loss_db: float = 1.5
    independent: bool = False

    def least(self, float_sqnr_db: float) -> tuple[float, float]:
        """Return the smallest SQNR and cosine for a checkpoint with ``float_sqnr_db`` to the float model."""
        if not self.independent or not float_sqnr_db - _TWICE_DB < self.sqnr_db:
            return self.sqnr_db, self.cosine
        sqnr = float_sqnr_db - _TWICE_DB
        # Independent noise is orthogonal to the signal and to the noise of the other.
        return sqnr, min(self.cosine, 1 / (1 + 10 ** (-float_sqnr_db / 10)))


@dataclass(frozen=True)
class Segment:
    """Hold the comparison of the segment in front of one quantizer, or of one output.

    Args:
        name: Slot of the quantizer, or name of the output.
        values: Number of values that were compared.
        ties: Number of values that differ by one step and lie within the tolerance of a rounding tie.
        wrong: Number of values that differ otherwise.
        largest: Largest difference.
        unit: Unit of ``largest``: ``steps`` for integers of a quantizer, ``of the largest magnitude`` for float
            outputs, ``by value`` for integer outputs.
        sqnr_db: SQNR of the file to torch; 200 if they are equal.
        scale_ratio: In half precision, the root mean square of the values of the file over that of torch, if it is
            farther from 1 than rounding can make it; 1 otherwise.
        tolerance: Largest difference that rounding errors of the file's float type explain, in ``unit``. For integers
            it is the width of the zone around a rounding tie, in the channel where it is widest.
    """

    name: str
    values: int
    ties: int
    wrong: int
    largest: float
    unit: str
    sqnr_db: float = EQUAL_DB
    scale_ratio: float = 1.0
    tolerance: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether no value is wrong, and the scale of all of them is right."""
        return not self.wrong and self.scale_ratio == 1


@dataclass(frozen=True)
class OutputComparison:
    """Compare one output of one batch end to end.

    Args:
        output: Name of the output.
        batch_size: Rows of the batch.
        seq_len: Length of the batch.
        sqnr_db: SQNR of the file to the checkpoint in torch.
        cosine: Cosine of the file to the checkpoint in torch.
        float_sqnr_db: SQNR of the file to the float model.
        float_cosine: Cosine of the file to the float model.
        expected_float_sqnr_db: SQNR of the checkpoint in torch to the float model.
        sqnr_spread_db: How far the SQNR of an output with few values may be off by chance; 0 for outputs with many. The
            bounds allow this much more.
        agreement: For integers (labels, positions), which have no SQNR: the share of values that are equal.
    """

    output: str
    batch_size: int
    seq_len: int
    sqnr_db: float
    cosine: float
    float_sqnr_db: float
    float_cosine: float
    expected_float_sqnr_db: float
    sqnr_spread_db: float = 0.0
    agreement: float | None = None


@dataclass(frozen=True)
class VerificationReport:
    """The result of :func:`exporters.verification.verify.verify`.

    Args:
        segments: The segments in graph order, over all batches.
        end_to_end: One comparison for each output and batch.
        bounds: The bounds for ``end_to_end``.
        runtime: The runtime that ran the file end to end.
        problems: What does not hold, in words; empty if the file is verified.
        saturation: Saturated sums of the products whose weights could saturate, over all batches; empty if they were
            not counted.
    """

    segments: list[Segment]
    end_to_end: list[OutputComparison]
    bounds: Bounds
    runtime: str
    problems: list[str] = field(default_factory=list)
    saturation: list[SaturationCount] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the file is verified."""
        return not self.problems

    @property
    def first_wrong(self) -> str | None:
        """Name of the first segment in graph order that does not hold; the error lies right in front of it."""
        return next((segment.name for segment in self.segments if not segment.holds), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON. None stands for NaN and infinity, which JSON does not have."""
        return {"holds": self.holds, "first_wrong": self.first_wrong, **_plain(asdict(self))}


# Other programs read reports under these former names.
_DOCUMENT_KEYS = {"problems": "faults", "sqnr_spread_db": "scatter_db", "scale_ratio": "gain"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_DOCUMENT_KEYS.get(key, key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
