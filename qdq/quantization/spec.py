"""How a tensor is quantized: to integers of some bits or to float8, and which values share a scale.

A :class:`QuantSpec` says nothing about values. Scale and zero point belong to a
:class:`qdq.quantization.quantizer.Quantizer`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import RecipeError, describe_problems
from qdq.settings import Rule, choice, documented, flag, problems_in, setting, settings_of, whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ARITHMETICS",
    "FLOAT8_MAX",
    "FORMATS",
    "PER_AXIS_PATTERN",
    "PER_GROUP_PATTERN",
    "Granularity",
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QuantSpec",
]

ARITHMETICS = ("onnx", "pytorch-quantization")
FORMATS = ("int", "float8e4m3fn")

FLOAT8_MAX = 448
"""The largest number of float8e4m3fn, which has 4 bits of exponent, 3 of mantissa, and no infinity."""

PER_AXIS_PATTERN = r"^per-axis\(-?[0-9]{1,9}\)$"
PER_GROUP_PATTERN = r"^per-group\((?!0+\))[0-9]{1,9}\)$"
"""Regular expressions for the granularities with a number, as recipes spell them; a group has at least one member."""


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: input ``(batch, seq, hidden)`` -> scale ``()``."""

    def __str__(self) -> str:
        return "per-tensor"


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of an axis: linear weight ``(out, in)`` with ``PerAxis(0)`` -> scale ``(out,)``.

    Args:
        axis: The axis that keeps its own scales.
    """

    axis: int

    def __str__(self) -> str:
        return f"per-axis({self.axis})"


@dataclass(frozen=True)
class PerGroup:
    """One scale for every group of neighbors on the last axis, for weights.

    A linear weight ``(out, in)`` -> scale ``(out, ceil(in / size))``.

    Args:
        size: The number of neighbors in a group. The last group of a row may be shorter.
    """

    size: int

    def __str__(self) -> str:
        return f"per-group({self.size})"


@dataclass(frozen=True)
class PerToken:
    """One scale for every vector on the last axis, for activations whose range is dynamic.

    An activation ``(batch, seq, hidden)`` -> scale ``(batch, seq, 1)``.
    """

    def __str__(self) -> str:
        return "per-token"


Granularity = PerTensor | PerAxis | PerGroup | PerToken


def _is_granularity(value: Any) -> bool:
    return isinstance(value, Granularity) and not (isinstance(value, PerGroup) and value.size < 1)


_GRANULARITY = Rule(
    _is_granularity,
    "per-tensor, per-axis(N), per-group(SIZE) with at least one member, or per-token",
    {
        "anyOf": [
            {"enum": ["per-tensor", "per-token"]},
            {"pattern": PER_AXIS_PATTERN},
            {"pattern": PER_GROUP_PATTERN},
        ],
        "type": "string",
    },
)


@documented
@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """The description of one quantizer: bits, signs, granularity, and how values are rounded.

    ``overflow_safe`` is for CPUs without VNNI instructions. These add the products of *pairs* of uint8 activations and
    int8 weights in 16 bits, which saturates if two neighboring weights are large and of the same sign. With this
    setting the scale of each output channel is large enough that no pair saturates, so that integer kernels are exact
    on every CPU. It costs less than half a bit of the weights' resolution on average (0.44 in all-MiniLM-L6-v2), where
    7-bit weights cost a whole bit.

    ``float8e4m3fn`` (ONNX's name) are floats of 8 bits with 448 as the largest number, for GPUs that multiply them.
    The scale maps the range to those 448. Steps are fine near 0 and coarse far from it. Float8 is symmetric, per tensor
    or per axis, with a calibrated range; the settings of integers stay at their defaults.

    The arithmetic ``pytorch-quantization`` is that package's own: a product with ``bound / amax``, then a division by
    it. It is symmetric, and the unsigned integers start at the zero point 0.

    Raises:
        RecipeError: Settings break their rules or contradict each other; all problems are named.
    """

    bits: int = setting(8, "The width of the integers, from 2 to 8.", whole(2, 8))
    signed: bool = setting(True, "Use integers from -2**(bits-1); if false, from 0.", flag())
    symmetric: bool = setting(
        True,
        "Fix the zero point (0, or the middle of unsigned integers) and use the range [-amax, amax]; if false "
        "(affine), use the range [min, max], widened to include 0, with a zero point that fits it.",
        flag(),
    )
    narrow_range: bool = setting(
        False, "Leave out the lowest signed integer, so that the integers are symmetric (int8: -127 to 127).", flag()
    )
    granularity: Granularity = setting(  # noqa: RUF009 (frozen)
        PerTensor(),
        "Which values share a scale: per-tensor, per-axis(N), per-group(SIZE), or with dynamic per-token.",
        _GRANULARITY,
    )
    overflow_safe: bool = setting(
        False,
        "For weights of linear layers with per-axis(0): choose scales with which integer kernels never saturate.",
        flag(),
    )
    dynamic: bool = setting(
        False, "Use the range of the tensor in each call, so that there is nothing to calibrate.", flag()
    )
    learned_scale: bool = setting(
        False,
        "Train the scale as a Parameter, as in LSQ (Esser et al. 2020, arXiv 1902.08153), starting from the calibrated "
        "one; the zero point stays.",
        flag(),
    )
    format: str = setting(
        "int", "Integers, or floats of 8 bits whose largest number is 448 (float8e4m3fn).", choice(*FORMATS)
    )
    arithmetic: str = setting(
        "onnx",
        "Divide by the scale (onnx), or compute as pytorch-quantization does, to the bit, for its checkpoints.",
        choice(*ARITHMETICS),
    )

    def __post_init__(self) -> None:
        if problems := _problems(vars(self)):
            raise RecipeError(describe_problems("quantization spec", problems))

    @property
    def is_float8(self) -> bool:
        """Whether values are rounded to floats of 8 bits instead of integers."""
        return self.format != "int"

    @property
    def qmin(self) -> int:
        """The lowest integer; for float8 the lowest number."""
        if self.is_float8:
            return -FLOAT8_MAX
        return int(self.narrow_range) - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest integer; for float8 the largest number."""
        if self.is_float8:
            return FLOAT8_MAX
        return (1 << (self.bits - self.signed)) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric spec: 0, or the middle of unsigned integers."""
        return 0 if self.signed or self.arithmetic != "onnx" else 1 << (self.bits - 1)

    @property
    def starts_at_zero(self) -> bool:
        """Whether the range ``[0, amax]`` maps to ``[0, qmax]``: unsigned integers of pytorch-quantization."""
        return self.symmetric and not self.signed and self.middle == 0

    @property
    def axis(self) -> int | None:
        """The axis that keeps its own scales; None for another granularity."""
        return self.granularity.axis if isinstance(self.granularity, PerAxis) else None

    @property
    def group(self) -> int | None:
        """The number of neighbors on the last axis that share a scale; None for another granularity."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else None

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scale for a tensor of this shape."""
        match self.granularity:
            case PerAxis(axis):
                return (shape[axis],)
            case PerGroup(size):
                return (*shape[:-1], -(-shape[-1] // size))
            case PerToken():
                return (*shape[:-1], 1)
        return ()

    def __str__(self) -> str:
        kind = self.format if self.is_float8 else f"{'int' if self.signed else 'uint'}{self.bits}"
        words = [kind, "symmetric" if self.symmetric else "affine"]
        words += [str(self.granularity)]
        words += [name.replace("_", "-") for name in _FLAGS[2:] if getattr(self, name)]
        words += [] if self.arithmetic == "onnx" else [f"({self.arithmetic} arithmetic)"]
        return " ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML; :meth:`from_dict` reads them."""
        return asdict(self) | {"granularity": str(self.granularity)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantSpec:
        """Read the values that :meth:`to_dict` returns. Missing keys take their defaults.

        Raises:
            RecipeError: Keys are unknown, settings break their rules or contradict each other; all problems are named.
        """
        if problems := cls.problems_in(values):
            raise RecipeError(describe_problems("quantization spec", problems))
        return cls(**_parse(values))

    @classmethod
    def problems_in(cls, values: Mapping[str, Any]) -> list[str]:
        """Return what keeps :meth:`from_dict` from reading ``values``, one line each that begins with the setting."""
        return _problems(_parse(values))


def _parse(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with the granularity as an object, if its text can be read."""
    settings = dict(values)
    if "granularity" in values:
        settings["granularity"] = _parse_granularity(values["granularity"])
    return settings


def _parse_granularity(text: object) -> object:
    """Return the granularity with this name; anything else is returned unchanged."""
    if text == "per-tensor":
        return PerTensor()
    if text == "per-token":
        return PerToken()
    for kind, pattern in ((PerAxis, PER_AXIS_PATTERN), (PerGroup, PER_GROUP_PATTERN)):
        if isinstance(text, str) and re.fullmatch(pattern, text):
            return kind(int(text[text.index("(") + 1 : -1]))
    return text


_FLAGS = ("signed", "symmetric", "narrow_range", "overflow_safe", "dynamic", "learned_scale")


def _problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the settings, each by itself and with each other."""
    problems = problems_in(QuantSpec, values)
    # Contradictions may involve settings that are left to their defaults.
    settings = {name: default for name, default, _ in settings_of(QuantSpec)} | dict(values)
    # A contradiction can be found as soon as the flags are true or false, whatever else is wrong.
    is_clear = all(isinstance(settings[name], bool) for name in _FLAGS)
    return problems + _contradictions(settings) if is_clear else problems


def _contradictions(settings: Mapping[str, Any]) -> list[str]:
    """Return the problems of settings that are valid by themselves but not together."""
    signed, symmetric, narrow_range, overflow_safe, dynamic, learned_scale = (settings[name] for name in _FLAGS)
    granularity, problems = settings["granularity"], []
    if narrow_range and not signed:
        problems.append("narrow_range is for signed integers")
    if overflow_safe and not (signed and symmetric and granularity == PerAxis(0)):
        problems.append("overflow_safe is for linear weights: signed, symmetric, granularity per-axis(0)")
    if isinstance(granularity, PerToken) and not dynamic:
        problems.append("granularity per-token needs dynamic: true, because its ranges cannot be known beforehand")
    if learned_scale and dynamic:
        problems.append("learned_scale and dynamic exclude each other: a scale is trained or found in every call")
    if learned_scale and isinstance(granularity, PerGroup):
        problems.append("learned_scale is for scales per tensor or per axis, not per group")
    if settings["format"] == "float8e4m3fn":
        problems += _float8_contradictions(settings)
    if settings["arithmetic"] == "pytorch-quantization":
        if not symmetric:
            problems.append("arithmetic pytorch-quantization is symmetric")
        if isinstance(granularity, PerGroup | PerToken):
            problems.append(f"arithmetic pytorch-quantization has no granularity {granularity}")
        if overflow_safe or learned_scale:
            problems.append("arithmetic pytorch-quantization has neither overflow_safe nor learned_scale")
    return problems


def _float8_contradictions(settings: Mapping[str, Any]) -> list[str]:
    problems = []
    if settings["bits"] != 8 or not settings["signed"] or not settings["symmetric"] or settings["narrow_range"]:
        problems.append("format float8e4m3fn has 8 bits, is signed and symmetric, and has no narrow_range")
    wrong = [name for name in ("overflow_safe", "dynamic", "learned_scale") if settings[name]]
    if wrong:
        problems.append(f"format float8e4m3fn does not support {', '.join(wrong)}: these are for integers")
    if isinstance(settings["granularity"], PerGroup | PerToken):
        problems.append(f"format float8e4m3fn has no granularity {settings['granularity']}")
    if settings["arithmetic"] != "onnx":
        problems.append("format float8e4m3fn supports only the arithmetic onnx")
    return problems
