"""From a torch model to an ONNX graph: torch's own exporter, then names that a person can read."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.io_signature import PAST_AND_SEQ, Input, example_inputs
from exporters.onnx.passes.name_after_modules import NameAfterModulesPass
from exporters.onnx.passes.tie_tables import TieTablesPass
from exporters.onnx.translation import translations
from qdq.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporters.export_model import Deployed

__all__ = ["OPSETS", "trace"]

OPSETS = range(18, 26)
"""What the translation can be written in."""


def trace(deployed: Deployed, *, opset: int = 21) -> ir.Model:
    """Export with every free axis of the inputs free. Quantizers come out as QuantizeLinear and DequantizeLinear.

    Args:
        deployed: a float or wrapped model in a form, from :func:`exporters.export_model.deploy`; in mode QUANTIZE where
            its quantizers are to be in the graph.
        opset: of the standard operators, 18 to 25.

    Raises:
        ExportError: for a model that torch cannot export.
    """
    config: Any = deployed.model.config
    signature = deployed.signature
    seq_len = max(8, config.min_length + 1)
    inputs = example_inputs(signature.inputs, vocab_size=int(config.vocab_size), seq_len=seq_len, padding=2)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                deployed.eval(),
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


def _dynamic_shapes(inputs: tuple[Input, ...]) -> tuple[dict[int, Any], ...]:
    """What is free; a sum of two lengths finds its own way through torch's exporter."""
    names = {axis for entry in inputs for axis in entry.axes if isinstance(axis, str) and axis != PAST_AND_SEQ}
    free: dict[str, Any] = {name: torch.export.Dim(name) for name in names}
    if any(PAST_AND_SEQ in entry.axes for entry in inputs):
        free = dict.fromkeys((*names, PAST_AND_SEQ), torch.export.Dim.DYNAMIC)
    return tuple(
        {index: free[axis] for index, axis in enumerate(entry.axes) if isinstance(axis, str)} for entry in inputs
    )


def _name_axes(model: ir.Model, inputs: tuple[Input, ...]) -> None:
    """Give the axes of the inputs their names, and all shapes of the graph that are made of the same symbols."""
    names: dict[str, str] = {}
    for value, entry in zip(model.graph.inputs, inputs, strict=True):
        if value.shape is not None:
            for given, axis in zip(value.shape, entry.axes, strict=True):
                if isinstance(given, ir.SymbolicDim) and given.value is not None and isinstance(axis, str):
                    names.setdefault(given.value, axis)
    for output in model.graph.outputs:
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
def _quiet() -> Iterator[None]:
    """The exporter's remarks about itself (torchvision is not installed, ...) are not for our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
