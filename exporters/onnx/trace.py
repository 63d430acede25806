"""Trace a torch model to an ONNX graph with torch's exporter, and give nodes and axes readable names."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.io_signature import PAST_AND_SEQ, InputSpec, example_inputs
from exporters.onnx.passes.name_after_modules import NameAfterModulesPass
from exporters.onnx.passes.tie_tables import TieTablesPass
from exporters.onnx.translation import translations
from qdq.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporters.export_model import ExportModel

__all__ = ["OPSETS", "trace"]

OPSETS = range(18, 26)
"""The opsets that a graph can be written in."""


def trace(export_model: ExportModel, *, opset: int = 21) -> ir.Model:
    """Trace a model. Every free axis of the inputs stays free, quantizers become QuantizeLinear and DequantizeLinear.

    Args:
        export_model: The model, from :func:`exporters.export_model.wrap_for_export`. Only quantizers in mode QUANTIZE
            appear in the graph.
        opset: Version of the standard operators, 18 to 25.

    Raises:
        ExportError: If torch cannot export the model.
    """
    config: Any = export_model.model.config
    signature = export_model.signature
    seq_len = max(8, getattr(config, "min_length", 1) + 1)
    inputs = example_inputs(signature.inputs, vocab_size=int(config.vocab_size), seq_len=seq_len, padding=2)
    try:
        with _silenced(), torch.no_grad():
            program = torch.onnx.export(
                export_model.eval(),
                tuple(inputs.values()),
                input_names=list(signature.input_names),
                output_names=list(signature.outputs),
                dynamic_shapes=(_dynamic_shapes(signature.inputs),),
                opset_version=opset,
                custom_translation_table=translations(),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()
        raise ExportError(f"torch cannot export this model: {reason[0] if reason else error!r}") from error
    assert program is not None
    exported: ir.Model = program.model
    NameAfterModulesPass(prefix="model")(exported)
    TieTablesPass()(exported)
    _name_axes(exported, signature.inputs)
    return exported


def _dynamic_shapes(inputs: tuple[InputSpec, ...]) -> tuple[dict[int, Any], ...]:
    """Return the free axes of each input, as ``torch.export`` takes them."""
    names = {axis for entry in inputs for axis in entry.axes if isinstance(axis, str) and axis != PAST_AND_SEQ}
    free: dict[str, Any] = {name: torch.export.Dim(name) for name in names}
    # torch.export takes no sum of two dimensions with names, but finds the relation itself when all are DYNAMIC.
    if any(PAST_AND_SEQ in entry.axes for entry in inputs):
        free = dict.fromkeys((*names, PAST_AND_SEQ), torch.export.Dim.DYNAMIC)
    return tuple(
        {index: free[axis] for index, axis in enumerate(entry.axes) if isinstance(axis, str)} for entry in inputs
    )


def _name_axes(model: ir.Model, inputs: tuple[InputSpec, ...]) -> None:
    """Name the axes of the inputs, and every other axis in the graph that has the same symbol."""
    names: dict[str, str] = {}
    for value, entry in zip(model.graph.inputs, inputs, strict=True):
        if value.shape is not None:
            for given, axis in zip(value.shape, entry.axes, strict=True):
                if isinstance(given, ir.SymbolicDim) and given.value is not None and isinstance(axis, str):
                    names.setdefault(given.value, axis)
    for output in model.graph.outputs:
        # torch gives the length of the grown cache a symbol of its own instead of the sum.
        if PAST_AND_SEQ in names.values() and str(output.name).startswith("present.") and output.shape is not None:
            batch, heads, _, size = output.shape
            output.shape = ir.Shape((batch, heads, PAST_AND_SEQ, size))
    if all(old == new for old, new in names.items()):
        return
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                names.get(str(axis.value), axis.value) if isinstance(axis, ir.SymbolicDim) else axis
                for axis in value.shape
            )


@contextmanager
def _silenced() -> Iterator[None]:
    """Hide the remarks of torch's exporter about itself, such as that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
