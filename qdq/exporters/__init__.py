"""Export: the package ``exporters``, under the name that users import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdq.processes import shadowing_problem

if problem := shadowing_problem("exporters"):
    raise ImportError(problem)

import exporters
from exporters import __all__

if TYPE_CHECKING:
    from exporters import *  # noqa: F403 (type checkers see its names here)


def __getattr__(name: str) -> Any:
    return getattr(exporters, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
