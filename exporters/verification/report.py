"""What a proof found, and the bounds that it was held to."""

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
    """What end to end must hold, for every output and every batch.

    A flipped step at one rounding tie in an early layer is amplified by the layers behind it, which leaves the distance
    to the float model as it was. A wrong scale, a missing quantizer or a saturating kernel does not.

    Args:
        sqnr_db: least SQNR of the file against the checkpoint in torch.
        cosine: least cosine of the file against the checkpoint in torch.
        float_loss_db: how far the file's SQNR against the float model may lie below the checkpoint's.
        independent: whether steps flip all over the place, as in half precision, where file and checkpoint round sums
            in an order of their own. The noise of quantization is then another in each: of the same size, so that the
            two may lie as far apart as both together are from the float model.
    """

    sqnr_db: float = 10.0
    cosine: float = 0.95
    float_loss_db: float = 1.5
    independent: bool = False

    def least(self, float_sqnr_db: float) -> tuple[float, float]:
        """SQNR and cosine that must be reached, where the checkpoint has ``float_sqnr_db`` against the float model."""
        if not self.independent or not float_sqnr_db - _TWICE_DB < self.sqnr_db:
            return self.sqnr_db, self.cosine
        sqnr = float_sqnr_db - _TWICE_DB
        # Noise stands at a right angle to the signal and to the other's noise.
        return sqnr, min(self.cosine, 1 / (1 + 10 ** (-float_sqnr_db / 10)))


@dataclass(frozen=True)
class Segment:
    """The piece in front of one quantizer, or of one output.

    Args:
        name: of the quantizer's slot, or of the graph's output.
        values: how many were compared.
        ties: how many differ by one step and lie within ``TIE`` of a rounding tie.
        wrong: how many differ otherwise.
        largest: largest difference.
        unit: of ``largest``: ``steps``, for an output ``of the largest magnitude``, for whole numbers ``by value``.
        sqnr_db: of what the file finds against what torch finds; 200 when they are equal.
        gain: in half precision, the root mean square of what the file finds over that of what torch finds, when it is
            farther from 1 than rounding makes it; 1 otherwise.
    """

    name: str
    values: int
    ties: int
    wrong: int
    largest: float
    unit: str
    sqnr_db: float = EQUAL_DB
    gain: float = 1.0

    @property
    def holds(self) -> bool:
        """Whether no value is wrong, and all of them together neither."""
        return not self.wrong and self.gain == 1


@dataclass(frozen=True)
class OutputComparison:
    """One output of one batch.

    Args:
        output: its name.
        batch_size: of the batch.
        seq_len: of the batch.
        sqnr_db: of the file against the checkpoint in torch.
        cosine: of the file against the checkpoint in torch.
        float_sqnr_db: of the file against the float model.
        float_cosine: of the file against the float model.
        expected_float_sqnr_db: of the checkpoint in torch against the float model.
        sqnr_spread_db: how much an SQNR of so few values may be off by chance; 0 for outputs of many. It is added to
            what the bounds allow.
        agreement: of whole numbers (labels, positions), which have no SQNR: the share that the checkpoint finds, too.
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
    """The report of :func:`verify`.

    Args:
        segments: in graph order, all batches added up.
        end_to_end: one for each output and batch.
        bounds: what ``end_to_end`` had to reach.
        runtime: that ran the file end to end.
        problems: what did not hold, in words; empty when all is well.
        saturation: of products whose weights could saturate, where that was asked for; all batches added up.
    """

    segments: list[Segment]
    end_to_end: list[OutputComparison]
    bounds: Bounds
    runtime: str
    problems: list[str] = field(default_factory=list)
    saturation: list[SaturationCount] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything did."""
        return not self.problems

    @property
    def first_wrong(self) -> str | None:
        """The first segment, in graph order, that does not hold: what stands in front of it is where to look."""
        return next((segment.name for segment in self.segments if not segment.holds), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no NaN and no infinity: None stands for them."""
        return {"holds": self.holds, "first_wrong": self.first_wrong, **_plain(asdict(self))}


# Documents that were written under these names are read by others.
_DOCUMENT_KEYS = {"problems": "faults", "sqnr_spread_db": "scatter_db"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_DOCUMENT_KEYS.get(key, key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
