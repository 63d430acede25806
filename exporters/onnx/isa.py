"""Instruction sets of CPUs, which decide how integer products must be written to be exact and fast.

x86 CPUs without VNNI add the products of *pairs* of uint8 activations and int8 weights in 16 bits (``vpmaddubsw``).
The sum saturates if two neighboring weights are large and of the same sign. With VNNI, and on Arm, sums have 32 bits.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["ANY", "ISAS", "Isa", "host_isa", "isa_named", "isa_of"]


@dataclass(frozen=True, kw_only=True)
class Isa:
    """Describe what an instruction set needs from the integer products of a file.

    Args:
        name: Name on the command line.
        saturates: Whether sums of pairs of uint8 x int8 products can saturate.
        signed_activations: Whether activations are stored in int8, like the weights, instead of uint8.
    """

    name: str
    saturates: bool
    signed_activations: bool = False


ANY = Isa(name="any", saturates=True)
"""The default: products that are exact on every CPU."""

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
    """Return the instruction set of that name; ``auto`` is the one of this machine.

    Raises:
        ExportError: If the name is unknown.
    """
    if name == "auto":
        return host_isa()
    if name not in ISAS:
        raise ExportError(f"no instruction set {name!r}: it must be one of {', '.join(ISAS)}, auto")
    return ISAS[name]


def host_isa(cpuinfo: Path = Path("/proc/cpuinfo")) -> Isa:
    """Return the instruction set of this machine, or ``any`` if its features cannot be read.

    Args:
        cpuinfo: The file that lists the features; it may be absent.
    """
    flags: set[str] = set()
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines())
        flags = set(next((value for key, _, value in lines if key.strip() == "flags"), "").split())
    return isa_of(platform.machine(), flags)


def isa_of(machine: str, flags: Collection[str]) -> Isa:
    """Return the instruction set of a machine.

    Args:
        machine: What ``platform.machine()`` returns there.
        flags: Its features, as /proc/cpuinfo spells them.
    """
    if machine.lower() in ("aarch64", "arm64"):
        return ISAS["arm"]
    if any(flag in flags for flag in _VNNI):
        return ISAS["vnni"]
    if "avx512bw" in flags:
        return ISAS["avx512"]
    return ISAS["avx2"] if "avx2" in flags else ANY
