"""From a quantized model to what is deployed: export, proof that it computes the same, build, and timing.

Backend-neutral parts stand directly in this package, one backend per subpackage. Nothing is imported here, so that
``import exporters`` stays light: take what you need from its module, as in ``from exporters.runners import
OnnxRuntimeRunner``.
"""

from __future__ import annotations

__all__: list[str] = []
