"""Find out how many tokens a file has positions for."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.passes.graph import LAYOUT, constant, is_op, producer
from exporters.onnx.walk import load_whole_graph
from qdq.errors import QDQError
from qdq.onnx_files import folder_with_tokenizer
from qdq.source import ModelDirectory
from qdq.storage import read_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["longest_text"]


def longest_text(path: Path, model: ir.Model | None = None) -> int | None:
    """Return the number of tokens in the longest text that a file takes, None if that is unknown.

    1. config.json beside the file, or in the folder above, says it.
    2. Else the tables in the graph do, in which positions are looked up.

    Args:
        path: The file.
        model: Its graph, if it is loaded already.

    Raises:
        CheckpointError: If the file has to be loaded and is not an ONNX file.
    """
    with suppress(QDQError):
        folder = folder_with_tokenizer(path, tokenizer=False)
        with suppress(QDQError):
            return ModelDirectory.of(folder).config.max_length
        # The configuration may be of a family that is not ours: its ONNX file is as good as any other.
        positions = read_json(folder / "config.json").get("max_position_embeddings")
        if isinstance(positions, int):
            return positions
    model = load_whole_graph(path) if model is None else model
    limits = [limit for node in model.graph.all_nodes() if (limit := _limit(node)) is not None]
    return min(limits, default=None)


def _limit(node: ir.Node) -> int | None:
    """Return how many positions ``node`` can look up, None if it looks up anything else.

    1. Positions are counted (Range, NonZero), maybe from another number than 0: the rows of the table limit them.
    2. Positions, or types that are the same for all tokens, are the beginning of a constant: its length limits them.
    """
    if not is_op(node, "Gather") or node.attributes.get_int("axis", 0) != 0:
        return None
    table, indices = _stored(node.inputs[0]), node.inputs[1]
    if table is None or len(table.shape) != 2:
        return None
    first, is_cut = 0, False
    while indices is not None:
        known = ir.convenience.get_const_tensor(indices)
        if known is not None:
            return int(known.size) if is_cut else None
        origin = indices.producer()
        if origin is None:
            return None
        if is_op(origin, "Range", "NonZero"):
            return int(table.shape.numpy()[0]) - first
        if is_op(origin, "Add"):
            numbers = [constant(value) for value in origin.inputs]
            added = next((number for number in numbers if number is not None and number.size == 1), None)
            if added is None:
                return None
            first += int(added.item())
            indices = next(value for value, number in zip(origin.inputs, numbers, strict=True) if number is not added)
        elif is_op(origin, *LAYOUT):
            is_cut = is_cut or is_op(origin, "Slice")
            indices = origin.inputs[0]
        else:
            return None
    return None


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the constant behind ``value``, maybe through quantizers."""
    while value is not None and value.const_value is None:
        node = producer(value, "QuantizeLinear", "DequantizeLinear", "Cast", "Identity")
        value = None if node is None else node.inputs[0]
    return None if value is None else value.const_value
