"""Graphs in the text syntax of ONNX, which run before and after a pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

if TYPE_CHECKING:
    from pathlib import Path

HEADER = '<ir_version: {}, opset_import: ["" : {}{}]>\n'


class Graphs:
    """Parse graphs, and run them in ONNX Runtime."""

    def parse(self, text: str, *, opset: int = 21) -> ir.Model:
        """Parse a graph, and check it with onnx."""
        contrib = ', "com.microsoft" : 1' if "com.microsoft" in text else ""
        proto = onnx.parser.parse_model(HEADER.format(10 if opset < 23 else 11, opset, contrib) + text)
        onnx.checker.check_model(proto, full_check=True)
        return ir.from_proto(proto)

    def operators(self, model: ir.Model) -> list[str]:
        """Return the types of the nodes, in order."""
        return [node.op_type for node in model.graph]

    def array(self, model: ir.Model, name: str) -> np.ndarray:
        """Return an initializer."""
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    def stored(self, path: Path) -> dict[str, np.ndarray]:
        """Return all initializers of a file by name."""
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}

    def float_matrices(self, path: Path) -> list[tuple[int, ...]]:
        """Return the shapes of the stored float matrices of a file."""
        arrays = self.stored(path).values()
        return [a.shape for a in arrays if a.dtype == np.float32 and a.ndim == 2 and min(a.shape) > 1]

    def quantizers(self, path: Path) -> dict[str, tuple[float, str, int]]:
        """Return scale, type and zero point of every QuantizeLinear of a file by name of its module."""
        constants = self.stored(path)
        return {
            node.name.rpartition("/")[0]: (
                float(constants[node.input[1]]),
                str(constants[node.input[2]].dtype),
                int(constants[node.input[2]]),
            )
            for node in onnx.load(path).graph.node
            if node.op_type == "QuantizeLinear"
        }

    def run(self, model: ir.Model, *, optimize: bool = False, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run a graph, and return the outputs by name."""
        session = self.session(model, optimize=optimize)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def session(self, model: ir.Model, *, optimize: bool = False, save: Path | None = None) -> ort.InferenceSession:
        """Make a session. The graph that it runs is written to ``save``."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if save is not None:
            options.optimized_model_filepath = str(save)
        data = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def apply(self, graph_pass: ir.passes.InPlacePass, model: ir.Model, **inputs: np.ndarray) -> bool:
        """Run a pass, and check that results and names stay the same and that it reports correctly whether it changed.

        A pass that reports no change leaves the graph the same to the bit, and a second run changes nothing.
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
