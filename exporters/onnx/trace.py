"""From a torch model to an ONNX graph: torch's own exporter, then names that a person can read."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from exporters.onnx.passes.name_after_modules import NameAfterModulesPass
from exporters.onnx.translation import translations
from exporters.signature import Signature, example_inputs
from qdq.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["OPSETS", "trace"]

OPSETS = range(18, 26)
"""What the translation can be written in."""


class _Positional(nn.Module):
    """Tensors in, tensors out: what an ONNX graph can have as its signature."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model = model
        self.signature = signature

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.signature.inputs, inputs, strict=True)))
        return tuple(output[name] for name in self.signature.outputs)


def trace(model: nn.Module, signature: Signature, *, opset: int = 21) -> ir.Model:
    """Export with dynamic batch and sequence. Quantizers come out as QuantizeLinear and DequantizeLinear.

    Args:
        model: float or wrapped; in mode QUANTIZE where its quantizers are to be in the graph.
        signature: from :func:`exporters.signature.signature_of`.
        opset: of the standard operators, 18 to 25.

    Raises:
        ExportError: for a model that torch cannot export.
    """
    vocab_size = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    inputs = example_inputs(signature.inputs, vocab_size=vocab_size, padding=2)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Positional(model, signature).eval(),
                tuple(inputs.values()),
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                dynamic_shapes=((dynamic,) * len(inputs),),
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
    return exported


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
