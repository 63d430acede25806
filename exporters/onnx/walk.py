"""Look at all of a graph: functions in place of their calls, and the subgraphs of If, Loop and Scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from exporters.onnx.load import load_onnx
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["inline_functions", "load_whole_graph", "stored_tensors", "stored_values"]


def load_whole_graph(path: Path) -> ir.Model:
    """Load a file with the bodies of its functions in place of their calls, as runtimes run it.

    ``model.graph.all_nodes()`` then visits every node that runs, also those within If, Loop and Scan.

    Raises:
        CheckpointError: If it is not an ONNX file, or a function cannot stand in place of its call.
    """
    model = load_onnx(path)
    inline_functions(model, str(path), any_opset=True)
    return model


def inline_functions(model: ir.Model, name: str, *, any_opset: bool = False) -> None:
    """Put the bodies of functions in place of their calls.

    Args:
        model: The model, which is changed.
        name: Name of the file, for the message.
        any_opset: Also take functions that are written for another opset than the model. This is fine for looking at a
            graph. The result must not be run: an operator may have changed between the two.

    Raises:
        CheckpointError: If that cannot be done.
    """
    if not model.functions:
        return
    if any_opset:
        for function in model.functions.values():
            for domain in function.opset_imports:
                function.opset_imports[domain] = model.opset_imports.get(domain, function.opset_imports[domain])
    try:
        common.InlinePass()(model)
    except Exception as error:  # the errors of passes have no common base below Exception
        cause = error.__cause__ or error
        raise CheckpointError(f"{name}: its functions cannot be read: {cause}") from error


def stored_values(model: ir.Model) -> Iterator[ir.Value]:
    """Iterate over the initializers of the graph and of all subgraphs."""
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.initializers.values()


def stored_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Iterate over all tensors that a file stores, each once: initializers and Constant nodes, also in functions."""
    for value in stored_values(model):
        if value.const_value is not None:
            yield value.const_value
    for nodes in (model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        for node in nodes:
            constant = node.attributes.get("value") if node.op_type == "Constant" else None
            if constant is not None and constant.type is ir.AttributeType.TENSOR:
                yield constant.as_tensor()
