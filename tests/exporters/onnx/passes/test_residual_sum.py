from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from exporters.onnx.passes.residual_sum import ResidualSumPass

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.onnx.conftest import Graphs

RNG = np.random.default_rng(0)
INPUTS = {name: RNG.normal(size=(1, 3, 4)).astype(np.float32) for name in "ab"}


def normed(nodes: str, *, last: str = "t", outputs: str = "float[1,3,4] y") -> str:
    return f"""
        g (float[1,3,4] a, float[1,3,4] b) => ({outputs})
        <float[4] scale = {{1.0, 2.0, 3.0, 4.0}}, float[4] bias = {{0.0, 1.0, 2.0, 3.0}}> {{
            {nodes}
            y = LayerNormalization<axis=-1>({last}, scale, bias)
        }}"""


def test_case_1_the_addition_becomes_a_sum(graphs: Graphs) -> None:
    model = graphs.parse(normed("t = Add(a, b)"))
    assert graphs.apply(ResidualSumPass(), model, **INPUTS)
    assert graphs.operators(model) == ["Sum", "LayerNormalization"]


def test_case_1_whoever_else_reads_it(graphs: Graphs) -> None:
    model = graphs.parse(normed("t = Add(a, b)\n u = Neg(t)", outputs="float[1,3,4] y, float[1,3,4] u"))
    assert graphs.apply(ResidualSumPass(), model, **INPUTS)
    assert graphs.operators(model) == ["Sum", "Neg", "LayerNormalization"]


@pytest.mark.parametrize("nodes", ["t = Mul(a, b)", "s = Add(a, b)\n t = Neg(s)"])
def test_case_2_anything_else_in_front_is_left_alone(graphs: Graphs, nodes: str) -> None:
    assert not graphs.apply(ResidualSumPass(), graphs.parse(normed(nodes)), **INPUTS)


def test_onnx_runtime_does_not_fuse_it(graphs: Graphs, tmp_path: Path) -> None:
    runs: dict[str, list[str]] = {}
    for name in ("with", "without"):
        model = graphs.parse(normed("t = Add(a, b)"))
        if name == "with":
            ResidualSumPass()(model)
        graphs.session(model, optimize=True, save=tmp_path / f"{name}.onnx")
        runs[name] = [node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node]
    assert runs["without"] == ["SkipLayerNormalization"]  # or there would be nothing to keep it from
    assert runs["with"] == ["Sum", "LayerNormalization"]
