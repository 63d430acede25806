"""How a tensor is quantized: to integers of some bits or to float8, and what shares a scale.

A :class:`QuantSpec` says nothing about values; scale and zero_point belong to a
:class:`qdq.quantization.quantizer.Quantizer`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from qdq.errors import RecipeError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ARITHMETICS", "FORMATS", "Granularity", "PerAxis", "PerGroup", "PerTensor", "PerToken", "QuantSpec"]

ARITHMETICS = ("onnx", "pytorch-quantization")
FORMATS = ("int", "float8e4m3fn")

FLOAT8_MAX = 448
"""The largest number of float8e4m3fn: 4 bits of exponent, 3 of mantissa, no infinity."""


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: input ``(batch, seq, hidden)`` -> scale ``()``."""

    def __str__(self) -> str:
        return "per-tensor"


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of ``axis``, the axis that keeps its own scales.

    A linear weight ``(out, in)`` with ``PerAxis(0)`` -> scale ``(out,)``.
    """

    axis: int

    def __str__(self) -> str:
        return f"per-axis({self.axis})"


@dataclass(frozen=True)
class PerGroup:
    """One scale for every ``size`` neighbours on the last axis, for weights; the last group may be shorter.

    A linear weight ``(out, in)`` -> scale ``(out, ceil(in / size))``.
    """

    size: int

    def __str__(self) -> str:
        return f"per-group({self.size})"


@dataclass(frozen=True)
class PerToken:
    """One scale for every vector on the last axis: ``(batch, seq, hidden)`` -> scale ``(batch, seq, 1)``.

    For activations whose range is dynamic.
    """

    def __str__(self) -> str:
        return "per-token"


Granularity = PerTensor | PerAxis | PerGroup | PerToken


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """The frozen description of one quantizer.

    Args:
        bits: width of the integers, 2 to 8.
        signed: integers from ``-2**(bits-1)``, else from 0.
        symmetric: the zero point is fixed (0 when signed, the middle when unsigned) and the range is ``[-amax, amax]``;
            else (affine) the range is ``[min, max]`` widened to hold 0, with a zero point of its own.
        narrow_range: leave out the lowest integer, so that the integers are symmetric too (int8: -127 to 127).
        granularity: :class:`PerTensor`, :class:`PerAxis`, :class:`PerGroup` or :class:`PerToken`.
        overflow_safe: for the weights of a linear layer. CPUs without VNNI instructions add the products of *pairs* of
            uint8 activations and int8 weights in 16 bits, which saturates when two neighbouring weights are large and
            of the same sign. With this set the scale of an output channel is large enough that no pair can: integer
            kernels are then exact on every CPU. Costs less than half a bit of the weights' resolution on average (0.44
            in all-MiniLM-L6-v2), where 7-bit weights cost a whole one.
        dynamic: the range is that of the tensor at hand, found anew in every call: nothing to calibrate.
        learned_scale: the scale is a Parameter, trained as in LSQ (Esser et al. 2020, arXiv 1902.08153) from where
            calibration put it; the zero point stays.
        format: ``int``, or ``float8e4m3fn`` (ONNX's name): floats of 8 bits with 448 as the largest, for GPUs that
            multiply them. The scale maps the range onto those 448; steps are fine near 0 and coarse far from it.
            Symmetric, per tensor or per axis, with a range that is calibrated; the settings of integers stay at their
            defaults.
        arithmetic: ``onnx`` (a division by the scale), or ``pytorch-quantization``: that package's own (a product with
            ``bound / amax``, then a division by it), to the bit, for checkpoints that come from there. Symmetric; when
            unsigned, the integers start at the zero point 0.

    Raises:
        RecipeError: for a combination that does not exist, all problems at once.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow_range: bool = False
    granularity: Granularity = PerTensor()
    overflow_safe: bool = False
    dynamic: bool = False
    learned_scale: bool = False
    format: str = "int"
    arithmetic: str = "onnx"

    def __post_init__(self) -> None:
        if problems := _problems(vars(self)):
            raise RecipeError(describe_problems("quantization spec", problems))

    @property
    def is_float8(self) -> bool:
        """Whether values are rounded to floats of 8 bits, not to integers."""
        return self.format != "int"

    @property
    def qmin(self) -> int:
        """The lowest integer; of float8 its least number."""
        if self.is_float8:
            return -FLOAT8_MAX
        return int(self.narrow_range) - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest integer; of float8 its largest number."""
        if self.is_float8:
            return FLOAT8_MAX
        return (1 << (self.bits - self.signed)) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric spec: 0, or the middle of unsigned integers."""
        return 0 if self.signed or self.arithmetic != "onnx" else 1 << (self.bits - 1)

    @property
    def starts_at_zero(self) -> bool:
        """Whether ``[0, amax]`` lies on ``[0, qmax]``: unsigned, as pytorch-quantization has it."""
        return self.symmetric and not self.signed and self.middle == 0

    @property
    def axis(self) -> int | None:
        """The axis that keeps its own scales; None when it is not one axis."""
        return self.granularity.axis if isinstance(self.granularity, PerAxis) else None

    @property
    def group(self) -> int | None:
        """How many neighbours on the last axis share a scale; None when it is not so."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else None

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that the scale of a tensor of ``shape`` has."""
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
        """Plain values for JSON and YAML; :meth:`from_dict` reads them back."""
        return asdict(self) | {"granularity": str(self.granularity)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantSpec:
        """Read what :meth:`to_dict` wrote; missing keys take their defaults.

        Raises:
            RecipeError: for unknown keys, values of the wrong kind and combinations that do not exist, all at once.
        """
        if problems := cls.problems_in(values):
            raise RecipeError(describe_problems("quantization spec", problems))
        return cls(**_settings(values))

    @classmethod
    def problems_in(cls, values: Mapping[str, Any]) -> list[str]:
        """What keeps :meth:`from_dict` from reading ``values``; nothing when it can."""
        defaults = {field.name: field.default for field in fields(cls)}
        unknown = [f"unknown key {key!r} (known: {', '.join(defaults)})" for key in values if key not in defaults]
        return unknown + _problems(defaults | _settings(values))


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the granularity as an object where it can be read."""
    settings = dict(values)
    if "granularity" in values:
        settings["granularity"] = _parse_granularity(values["granularity"])
    return settings


def _parse_granularity(text: object) -> object:
    """What ``str(granularity)`` wrote; anything else comes back as it is."""
    if text == "per-tensor":
        return PerTensor()
    if text == "per-token":
        return PerToken()
    match = re.fullmatch(r"per-(axis|group)\((-?[0-9]{1,9})\)", text) if isinstance(text, str) else None
    if match is None:
        return text
    return (PerAxis if match[1] == "axis" else PerGroup)(int(match[2]))


_FLAGS = ("signed", "symmetric", "narrow_range", "overflow_safe", "dynamic", "learned_scale")


def _problems(settings: Mapping[str, Any]) -> list[str]:
    problems = []
    bits, granularity, arithmetic = settings["bits"], settings["granularity"], settings["arithmetic"]
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        problems.append(f"bits is {bits!r}, must be a whole number from 2 to 8")
    wrong = [key for key in _FLAGS if not isinstance(settings[key], bool)]
    problems += [f"{key} is {settings[key]!r}, must be true or false" for key in wrong]
    if not isinstance(granularity, Granularity):
        problems.append(
            f"granularity is {granularity!r}, must be per-tensor, per-axis(N), per-group(SIZE) or per-token"
        )
    elif isinstance(granularity, PerGroup) and granularity.size < 1:
        problems.append(f"granularity is {granularity}, a group has at least one member")
    if settings["format"] not in FORMATS:
        problems.append(f"format is {settings['format']!r}, must be one of {', '.join(FORMATS)}")
    if arithmetic not in ARITHMETICS:
        problems.append(f"arithmetic is {arithmetic!r}, must be one of {', '.join(ARITHMETICS)}")
    return problems if wrong else problems + _conflicts(settings)


def _conflicts(settings: Mapping[str, Any]) -> list[str]:
    """Settings that are fine by themselves and not together."""
    signed, symmetric, narrow_range, overflow_safe, dynamic, learned_scale = (settings[key] for key in _FLAGS)
    granularity, problems = settings["granularity"], []
    if narrow_range and not signed:
        problems.append("narrow_range is for signed integers")
    if overflow_safe and not (signed and symmetric and granularity == PerAxis(0)):
        problems.append("overflow_safe is for linear weights: signed, symmetric, granularity per-axis(0)")
    if isinstance(granularity, PerToken) and not dynamic:
        problems.append("granularity per-token needs dynamic: true, its ranges cannot be known beforehand")
    if learned_scale and dynamic:
        problems.append("learned_scale and dynamic exclude each other: a scale is trained or found in every call")
    if learned_scale and isinstance(granularity, PerGroup):
        problems.append("learned_scale is for scales per tensor or per axis, not per group")
    if settings["format"] == "float8e4m3fn":
        problems += _float8_conflicts(settings)
    if settings["arithmetic"] == "pytorch-quantization":
        if not symmetric:
            problems.append("arithmetic pytorch-quantization is symmetric")
        if isinstance(granularity, PerGroup | PerToken):
            problems.append(f"arithmetic pytorch-quantization has no granularity {granularity}")
        if overflow_safe or learned_scale:
            problems.append("arithmetic pytorch-quantization knows neither overflow_safe nor learned_scale")
    return problems


def _float8_conflicts(settings: Mapping[str, Any]) -> list[str]:
    problems = []
    if settings["bits"] != 8 or not settings["signed"] or not settings["symmetric"] or settings["narrow_range"]:
        problems.append("format float8e4m3fn has 8 bits, is signed and symmetric, and has no narrow_range")
    wrong = [name for name in ("overflow_safe", "dynamic", "learned_scale") if settings[name]]
    if wrong:
        problems.append(f"format float8e4m3fn knows no {', '.join(wrong)}: these are for integers")
    if isinstance(settings["granularity"], PerGroup | PerToken):
        problems.append(f"format float8e4m3fn has no granularity {settings['granularity']}")
    if settings["arithmetic"] != "onnx":
        problems.append("format float8e4m3fn has the arithmetic onnx alone")
    return problems
