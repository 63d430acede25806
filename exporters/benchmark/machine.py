"""The machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["INT8_INSTRUCTIONS", "Machine"]

INT8_INSTRUCTIONS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8")
"""Instruction sets that decide how fast int8 products are, as /proc/cpuinfo spells them."""


@dataclass(frozen=True)
class Machine:
    """Describe a machine.

    Args:
        cpu: Name of the processor.
        logical_cores: Number of logical cores.
        int8_instructions: Its int8 instruction sets; known for x86 on Linux only.
    """

    cpu: str
    logical_cores: int
    int8_instructions: tuple[str, ...]

    @classmethod
    def this(cls, cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
        """Describe the machine that this process runs on.

        Args:
            cpuinfo: The file that describes the processor; it may be absent.
        """
        fields: dict[str, str] = {}
        if cpuinfo.exists():
            for line in cpuinfo.read_text().splitlines():
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())  # the first core stands for all
        flags = set(fields.get("flags", "").split())
        return cls(
            cpu=fields.get("model name") or platform.processor() or platform.machine(),
            logical_cores=os.cpu_count() or 1,
            int8_instructions=tuple(name for name in INT8_INSTRUCTIONS if name in flags),
        )
