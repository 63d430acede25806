"""Optimize a float file with ONNX Runtime's optimizer for transformers, to have the fastest float baseline."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qdq.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["optimized_float"]


def optimized_float(path: Path, target: Path) -> Path:
    """Write the model that ``onnxruntime.transformers.optimizer`` makes of a float model.

    Args:
        path: The float model. A config.json beside it gives the number of heads and the hidden size; without one the
            optimizer finds them itself.
        target: The file to write.

    Returns:
        ``target``.

    Raises:
        ExportError: If the optimizer cannot process the file.
    """
    from onnxruntime.transformers.optimizer import optimize_model

    heads = hidden = 0
    config = path.parent / "config.json"
    if config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        heads, hidden = int(values.get("num_attention_heads", 0)), int(values.get("hidden_size", 0))
    try:
        with _quiet():
            model = optimize_model(str(path), model_type="bert", num_heads=heads, hidden_size=hidden)
            model.save_model_to_file(str(target))
    except Exception as error:  # the optimizer lets every error of its passes through
        raise ExportError(f"{path}: ONNX Runtime's optimizer for transformers cannot process it: {error}") from error
    return target


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the optimizer, which logs every fusion it counts."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
