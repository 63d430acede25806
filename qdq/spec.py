"""How a tensor is quantized: number of bits, range of the integers, and what shares a scale.

A :class:`QuantSpec` says nothing about values; scale and zero_point belong to a :class:`qdq.quantizer.Quantizer`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from qdq.errors import RecipeError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Granularity", "PerAxis", "PerTensor", "QuantSpec"]


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


Granularity = PerTensor | PerAxis


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """The frozen description of one quantizer.

    Args:
        bits: width of the integers, 2 to 8.
        signed: integers from ``-2**(bits-1)``, else from 0.
        symmetric: the zero point is fixed (0 when signed, the middle when unsigned) and the range is ``[-amax, amax]``;
            else (affine) the range is ``[min, max]`` widened to hold 0, with a zero point of its own.
        narrow_range: leave out the lowest integer, so that the integers are symmetric too (int8: -127 to 127).
        granularity: :class:`PerTensor` or :class:`PerAxis`.
        overflow_safe: for the weights of a linear layer. CPUs without VNNI instructions add the products of *pairs* of
            uint8 activations and int8 weights in 16 bits, which saturates when two neighbouring weights are large and
            of the same sign. With this set the scale of an output channel is large enough that no pair can: integer
            kernels are then exact on every CPU. Costs less than half a bit of the weights' resolution on average (0.44
            in all-MiniLM-L6-v2), where 7-bit weights cost a whole one.

    Raises:
        RecipeError: for a combination that does not exist, all faults at once.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow_range: bool = False
    granularity: Granularity = PerTensor()
    overflow_safe: bool = False

    def __post_init__(self) -> None:
        if faults := _faults(vars(self)):
            raise RecipeError(describe_faults("quantization spec", faults))

    @property
    def qmin(self) -> int:
        """The lowest integer."""
        return int(self.narrow_range) - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest integer."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric spec: 0, or the middle of unsigned integers."""
        return 0 if self.signed else 1 << (self.bits - 1)

    @property
    def axis(self) -> int | None:
        """The axis that keeps its own scales, None per tensor."""
        return self.granularity.axis if isinstance(self.granularity, PerAxis) else None

    def __str__(self) -> str:
        words = [f"{'int' if self.signed else 'uint'}{self.bits}", "symmetric" if self.symmetric else "affine"]
        words += [str(self.granularity)]
        words += [name.replace("_", "-") for name in ("narrow_range", "overflow_safe") if getattr(self, name)]
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
        if faults := cls.faults_in(values):
            raise RecipeError(describe_faults("quantization spec", faults))
        return cls(**_settings(values))

    @classmethod
    def faults_in(cls, values: Mapping[str, Any]) -> list[str]:
        """What keeps :meth:`from_dict` from reading ``values``; nothing when it can."""
        defaults = {field.name: field.default for field in fields(cls)}
        unknown = [f"unknown key {key!r} (known: {', '.join(defaults)})" for key in values if key not in defaults]
        return unknown + _faults(defaults | _settings(values))


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
    match = re.fullmatch(r"per-axis\((-?[0-9]{1,4})\)", text) if isinstance(text, str) else None
    return text if match is None else PerAxis(int(match[1]))


def _faults(settings: Mapping[str, Any]) -> list[str]:
    faults = []
    bits, granularity = settings["bits"], settings["granularity"]
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        faults.append(f"bits is {bits!r}, must be a whole number from 2 to 8")
    flags = ("signed", "symmetric", "narrow_range", "overflow_safe")
    wrong = [key for key in flags if not isinstance(settings[key], bool)]
    faults += [f"{key} is {settings[key]!r}, must be true or false" for key in wrong]
    if not isinstance(granularity, Granularity):
        faults.append(f"granularity is {granularity!r}, must be per-tensor or per-axis(N)")
    if wrong:
        return faults
    if settings["narrow_range"] and not settings["signed"]:
        faults.append("narrow_range is for signed integers")
    if settings["overflow_safe"] and not (settings["signed"] and settings["symmetric"] and granularity == PerAxis(0)):
        faults.append("overflow_safe is for linear weights: signed, symmetric, granularity per-axis(0)")
    return faults
