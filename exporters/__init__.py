"""Export a quantized model, verify that the file computes the same, build an engine from it, and time it.

Parts that serve every backend stand directly in this package; each backend has a subpackage of its own. Nothing is
imported here, so that ``import exporters`` stays light. Import what you need from its module:
``from exporters.runners import OnnxRuntimeRunner``.
"""

from __future__ import annotations

__all__: list[str] = []
