"""Graphs in ONNX's own text form, run before and after a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


class Graphs:
    """Reads graphs and runs them, nothing optimized."""

    def parse(self, text: str) -> ir.Model:
        """A graph in text form, checked by onnx."""
        proto = onnx.parser.parse_model(HEADER + text)
        onnx.checker.check_model(proto, full_check=True)
        return ir.from_proto(proto)

    def operators(self, model: ir.Model) -> list[str]:
        """Types of the nodes, in order."""
        return [node.op_type for node in model.graph]

    def array(self, model: ir.Model, name: str) -> np.ndarray:
        """An initializer."""
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    def run(self, model: ir.Model, *, optimize: bool = False, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, in ONNX Runtime."""
        session = self.session(model, optimize=optimize)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def session(self, model: ir.Model, *, optimize: bool = False, save: Any = None) -> ort.InferenceSession:
        """A session, the graph it really runs saved to ``save``."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if save is not None:
            options.optimized_model_filepath = str(save)
        data = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def apply(self, graph_pass: ir.passes.InPlacePass, model: ir.Model, **inputs: np.ndarray) -> bool:
        """Run a pass and hold it to its word: the same names of inputs and outputs, the same results, a true flag.

        A pass that reports no change leaves the graph as it was, bit for bit; and what it has changed once, it does not
        change again.
        """
        before, expected = ir.to_proto(model).SerializeToString(), self.run(model, **inputs)
        modified = graph_pass(model).modified
        proto = ir.to_proto(model)
        assert modified == (proto.SerializeToString() != before)
        if not any(node.domain for node in proto.graph.node):  # the checker knows no others
            onnx.checker.check_model(proto, full_check=True)
        found = self.run(model, **inputs)
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)
            assert found[name].dtype == array.dtype
        assert not graph_pass(model).modified
        return modified


@pytest.fixture(scope="session")
def graphs() -> Graphs:
    return Graphs()
