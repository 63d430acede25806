"""Find the installed TensorRT, and collect its messages."""

from __future__ import annotations

import importlib
import logging
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from exporters.tensorrt.nvidia_driver import driver_problem, require_driver
from qdq.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from exporters.tensorrt.protocols import TensorRT

__all__ = ["BACKENDS", "Backend", "Messages", "find_backend", "messages"]

BACKENDS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Name on the command line -> package."""

_OLDEST = (10, 13)  # of full TensorRT; all names in protocols.py exist from this version on

_NOISE = "has Int64 binding."  # a warning about every input of ids

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """Hold an installed TensorRT.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        trt: The module.
    """

    name: str
    trt: TensorRT

    @property
    def version(self) -> str:
        """Version of the package, for example ``11.1.0.106``."""
        return str(self.trt.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, which builds without a GPU and has no timing cache."""
        return self.name == "tensorrt-rtx"


def find_backend(name: str = "auto") -> Backend:
    """Find the installed TensorRT.

    Args:
        name: ``tensorrt``, ``tensorrt-rtx``, or ``auto``: full TensorRT if it is installed and there is a GPU, else
            TensorRT-RTX.

    Raises:
        BuildError: If full TensorRT is chosen and there is no GPU.
        ConfigError: If the name is unknown, or the version is too old.
        MissingPackageError: If it is not installed.
    """
    if name not in ("auto", *BACKENDS):
        raise ConfigError(f"no backend {name!r}: it must be one of auto, {', '.join(BACKENDS)}")
    names = [name] if name != "auto" else ["tensorrt", "tensorrt-rtx"]
    if name == "auto" and driver_problem() is not None:
        names.reverse()  # full TensorRT needs a GPU even to build
    for candidate in names:
        module = _imported(BACKENDS[candidate])
        if module is not None:
            found = _checked(Backend(candidate, cast("TensorRT", module)))
            if not found.is_rtx:
                require_driver("full TensorRT (TensorRT-RTX builds without one: pip install 'qdq[tensorrt-rtx]')")
            return found
    raise MissingTensorRTError(names)


class MissingTensorRTError(MissingPackageError):
    """Neither product is installed, or not the one that was asked for. The message has the pip commands of both."""

    def __init__(self, names: list[str]) -> None:
        wanted = " or ".join(f"'{BACKENDS[name]}'" for name in sorted(names))
        Exception.__init__(
            self,
            f"building engines needs the package {wanted}, which is not installed: pip install 'qdq[tensorrt-rtx]' "
            "(TensorRT-RTX, builds without a GPU too), or on a machine with an NVIDIA GPU pip install tensorrt; both "
            "are under NVIDIA's licence",
        )


def _imported(package: str) -> Any | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except ImportError as error:  # also raised if the libraries of the package are missing
        _LOG.debug("%s: %s", package, error)
        return None


def _checked(backend: Backend) -> Backend:
    version = tuple(int(part) for part in backend.version.split(".")[:2])
    if not backend.is_rtx and version < _OLDEST:
        raise ConfigError(f"TensorRT {backend.version} is too old: it must be 10.13 or above (pip install -U tensorrt)")
    if backend.is_rtx and version < (1, 7):
        raise ConfigError(
            f"TensorRT-RTX {backend.version} cannot build without a GPU: it must be 1.7 or above "
            "(pip install -U 'qdq[tensorrt-rtx]')"
        )
    return backend


@dataclass
class Messages:
    """Hold the messages of TensorRT that matter.

    Args:
        errors: The errors, in order.
        warnings: The warnings, in order, each once.
        layers: The last description of the layers of an engine.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layers: str | None = None

    def clear(self) -> None:
        """Remove all messages."""
        self.errors.clear()
        self.warnings.clear()
        self.layers = None


_LOGGERS: dict[str, tuple[Any, Messages]] = {}


def messages(backend: Backend) -> tuple[Any, Messages]:
    """Return the logger of this process for ``backend``, and the messages that it collects.

    TensorRT keeps the first logger that it gets and ignores all others, so there is one for each process.
    """
    if backend.name not in _LOGGERS:
        trt, received = backend.trt, Messages()

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    received.errors.append(message)
                elif severity == trt.ILogger.Severity.WARNING:
                    if message not in received.warnings and not message.endswith(_NOISE):
                        received.warnings.append(message)
                elif message.startswith("Layers:"):
                    received.layers = message
                else:
                    _LOG.debug("%s", message)

        _LOGGERS[backend.name] = (Logger(), received)
    return _LOGGERS[backend.name]
