"""Numbers of the fields of onnx.proto that reading and writing large files needs."""

from __future__ import annotations

__all__ = [
    "GRAPH_INITIALIZER",
    "LARGE_TENSOR",
    "MODEL_GRAPH",
    "TENSOR_DATA_LOCATION",
    "TENSOR_EXTERNAL_DATA",
    "TENSOR_RAW_DATA",
]

MODEL_GRAPH = 7
GRAPH_INITIALIZER = 5
TENSOR_RAW_DATA, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 9, 13, 14

LARGE_TENSOR = 1 << 16
"""Bytes from which on a weight is read and written apart from the message. Smaller ones are not worth the trouble."""
