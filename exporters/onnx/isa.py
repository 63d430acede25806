"""Instruction sets of CPUs, as far as they decide in which form integer products are exact and fast.

CPUs of x86 without VNNI add the products of *pairs* of uint8 activations and int8 weights in 16 bits (``vpmaddubsw``),
which saturates where two neighbouring weights are large and of the same sign. With VNNI, and on Arm, sums have 32 bits.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["ANY", "ISAS", "Isa", "isa_named", "isa_of", "this_isa"]


@dataclass(frozen=True, kw_only=True)
class Isa:
    """What an instruction set wants of the integer products in a file.

    Args:
        name: as on the command line.
        saturates: whether sums of pairs of uint8 x int8 products can saturate.
        signed_activations: whether activations are held in int8, so that both operands are; else in uint8.
    """

    name: str
    saturates: bool
    signed_activations: bool = False


ANY = Isa(name="any", saturates=True)
"""The form that is exact on every CPU, which is what is written when none is named."""

ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (
        ANY,
        Isa(name="avx2", saturates=True),
        Isa(name="avx512", saturates=True),
        Isa(name="vnni", saturates=False),
        Isa(name="arm", saturates=False, signed_activations=True),
    )
}

_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")  # as /proc/cpuinfo spells them


def isa_named(name: str) -> Isa:
    """The instruction set of the command line's ``--isa``; ``auto`` is that of this machine.

    Raises:
        ExportError: for a name that is not known.
    """
    if name == "auto":
        return this_isa()
    if name not in ISAS:
        raise ExportError(f"no instruction set {name!r}: it must be one of {', '.join(ISAS)}, auto")
    return ISAS[name]


def this_isa(cpuinfo: Path = Path("/proc/cpuinfo")) -> Isa:
    """The instruction set of the machine we run on; of x86 without a readable list of features, any."""
    flags: set[str] = set()
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines())
        flags = set(next((value for key, _, value in lines if key.strip() == "flags"), "").split())
    return isa_of(platform.machine(), flags)


def isa_of(machine: str, flags: Collection[str]) -> Isa:
    """The instruction set of a ``machine`` (as ``platform.machine()`` says) that has these features."""
    if machine.lower() in ("aarch64", "arm64"):
        return ISAS["arm"]
    if any(flag in flags for flag in _VNNI):
        return ISAS["vnni"]
    if "avx512bw" in flags:
        return ISAS["avx512"]
    return ISAS["avx2"] if "avx2" in flags else ANY
