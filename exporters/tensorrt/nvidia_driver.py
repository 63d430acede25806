"""Find out whether there is an NVIDIA driver with a GPU. Much of TensorRT crashes the process without one."""

from __future__ import annotations

import ctypes
import sys

from qdq.errors import BuildError

__all__ = ["driver_problem", "require_driver"]

_NAMES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")


def driver_problem() -> str | None:
    """Return why no engine can run here, None if one can."""
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        code = int(library.cuInit(0))
        if code:
            return f"the NVIDIA driver does not start (CUDA error {code})"
        count = ctypes.c_int(0)
        code = int(library.cuDeviceGetCount(ctypes.byref(count)))
        if code or not count.value:
            return "the NVIDIA driver finds no GPU"
        return None
    return "there is no NVIDIA driver"


def require_driver(purpose: str) -> None:
    """Raise if there is no GPU.

    Args:
        purpose: What needs the GPU, for the message.

    Raises:
        BuildError: If there is no driver, or no GPU.
    """
    problem = driver_problem()
    if problem is not None:
        raise BuildError(f"{purpose} needs an NVIDIA GPU, and {problem}")
