from __future__ import annotations

import logging
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporters.export_model import ExportModel, wrap_for_export
from exporters.interface import ExportInterface
from exporters.io_signature import IOSignature, example_inputs, token_inputs
from exporters.onnx.trace import trace
from qdq.errors import ExportError
from qdq.models.outputs import BaseOutput

if TYPE_CHECKING:
    import onnx_ir as ir

    from tests.exporters.conftest import TinyModels
    from tests.exporters.onnx.conftest import Graphs


@pytest.fixture(scope="module")
def traced(tiny_models: TinyModels) -> tuple[Any, ir.Model]:
    model = tiny_models.model(num_hidden_layers=2)
    return model, trace(wrap_for_export(model))


def test_nodes_are_named_after_modules_of_the_model(traced: tuple[Any, ir.Model]) -> None:
    model, graph = traced
    modules = {name for name, _ in model.named_modules()}
    named = Counter(str(node.name).rpartition("/")[0] for node in graph.graph)
    assert set(named) <= modules
    assert {f"encoder.layers.{n}.attention.{child}" for n in (0, 1) for child in ("query", "scores", "norm")} <= {
        *named
    }
    names = [node.name for node in graph.graph]
    assert len(set(names)) == len(names)
    linears = [name for name, module in model.encoder.named_modules(prefix="encoder") if is_linear(module)]
    assert {f"{name}/MatMul" for name in linears} <= set(names)


def test_tensors_are_named_after_parameters(traced: tuple[Any, ir.Model]) -> None:
    model, graph = traced
    parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    stored = {name: value.const_value.numpy() for name, value in graph.graph.initializers.items() if "." in name}
    assert stored
    for name, array in stored.items():
        np.testing.assert_array_equal(array, parameters[name], err_msg=name)
    # the exporter stores the weights of products transposed, under numbers; everything else has its name
    products = {f"{name}.weight" for name, module in model.encoder.named_modules(prefix="encoder") if is_linear(module)}
    assert set(parameters) - set(stored) == products


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def test_compound_functions_are_single_nodes(traced: tuple[Any, ir.Model]) -> None:
    counts = Counter(node.op_type for node in traced[1].graph)
    assert {name: counts[name] for name in ("LayerNormalization", "Gelu", "Softmax")} == {
        "LayerNormalization": 5,
        "Gelu": 2,
        "Softmax": 2,
    }
    assert not {"Erf", "Pow", "Sqrt", "ReduceMean", "Exp", "If", "Loop"} & set(counts)


def test_batch_and_sequence_are_free(traced: tuple[Any, ir.Model], graphs: Graphs) -> None:
    model, graph = traced
    shapes = [
        {value.name: [str(size) for size in value.shape] for value in values}
        for values in (graph.graph.inputs, graph.graph.outputs)
    ]
    assert shapes == [
        {name: ["batch", "seq"] for name in ("input_ids", "attention_mask", "token_type_ids")},
        {"last_hidden_state": ["batch", "seq", "32"], "pooler_output": ["batch", "32"]},
    ]
    names = token_inputs()
    for batch_size, seq_len, padding in ((1, 1, 0), (1, 40, 0), (7, 3, 2), (2, 13, 5)):
        batch = example_inputs(names, batch_size=batch_size, seq_len=seq_len, vocab_size=83, padding=padding)
        with torch.no_grad():
            expected = model(**batch)
        found = graphs.run(graph, **{name: value.numpy() for name, value in batch.items()})
        for name in ("last_hidden_state", "pooler_output"):
            np.testing.assert_allclose(found[name], expected[name].numpy(), atol=1e-5, rtol=1e-5)


class Branching(nn.Module):
    """What it computes depends on values in a way that no graph can say."""

    config = SimpleNamespace(vocab_size=9)

    def forward(self, input_ids: Tensor) -> BaseOutput:
        if input_ids.sum() > 10:
            return BaseOutput(last_hidden_state=input_ids.float())
        return BaseOutput(last_hidden_state=-input_ids.float())


def test_a_model_that_cannot_be_exported_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.getLogger("torch.onnx").level
    branching = ExportModel(Branching(), token_inputs("input_ids"), ExportInterface())
    branching.signature = IOSignature(token_inputs("input_ids"), ("last_hidden_state",))
    with pytest.raises(ExportError, match=r"^torch cannot export this model: [^\n]+$"):
        trace(branching)
    assert logging.getLogger("torch.onnx").level == level
    assert capfd.readouterr().out == ""  # where results go
