"""Read an ONNX file that may be anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_onnx"]


def load_onnx(path: Path) -> ir.Model:
    """The model in ``path``.

    Raises:
        CheckpointError: when it is not an ONNX file.
    """
    try:
        model = ir.load(path)
        if not model.graph.outputs:  # protobuf takes many a file, the empty one among them, for a model without content
            raise ValueError("no graph with an output")
    except Exception as error:  # protobuf has its own tree of errors, and several libraries stand between
        raise CheckpointError(f"{path}: not an ONNX file ({error})") from error
    return model
