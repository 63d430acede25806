from __future__ import annotations

from typing import TYPE_CHECKING

from exporters.onnx.passes.name_after_modules import NameAfterModulesPass

if TYPE_CHECKING:
    import onnx_ir as ir

    from tests.exporters.onnx.conftest import Graphs

GRAPH = """
    g (float[n] x) => (float[n] y)
    <float s = {1.0}, float w = {2.0}, int8 z = {0}> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        e = Mul(d, w)
        f = Mul(e, w)
        y = Neg(f)
    }"""


def scoped(graphs: Graphs, *paths: str | None) -> ir.Model:
    model: ir.Model = graphs.parse(GRAPH)
    for old, new in (("s", "model.a.q.scale"), ("w", "model.w")):
        model.graph.initializers[old].name = new
    for node, path in zip(model.graph, paths, strict=True):
        if path is not None:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", *path.split("/"), "operation"])
    return model


def names(model: ir.Model) -> list[str | None]:
    return [node.name for node in model.graph]


def test_case_1_nodes_and_tensors_carry_the_path_of_their_module(graphs: Graphs) -> None:
    quantizer = "model/model.a/model.a.q"
    model = scoped(graphs, quantizer, quantizer, "model/model.a", "model/model.a", "model/model.b")
    assert NameAfterModulesPass("model")(model).modified
    assert names(model) == ["a.q/QuantizeLinear", "a.q/DequantizeLinear", "a/Mul", "a/Mul_1", "b/Neg"]
    assert [node.outputs[0].name for node in model.graph] == [
        "a.q/QuantizeLinear_output_0",
        "a.q/DequantizeLinear_output_0",
        "a/Mul_output_0",
        "a/Mul_1_output_0",
        "y",  # the signature
    ]
    assert not NameAfterModulesPass("model")(model).modified


def test_case_2_without_a_path_the_operator_is_numbered(graphs: Graphs) -> None:
    hook = "model/_empty_nn_module_stack_from_metadata_hook"
    model = scoped(graphs, None, None, "model", hook, None)
    NameAfterModulesPass("model")(model)
    assert names(model) == ["QuantizeLinear", "DequantizeLinear", "Mul", "Mul_1", "Neg"]


def test_case_3_initializers_lose_the_prefix(graphs: Graphs) -> None:
    model = scoped(graphs, "model/model.a.q", "model/model.a.q", None, None, None)
    NameAfterModulesPass("model")(model)
    assert set(model.graph.initializers) == {"a.q.scale", "w", "z"}


def test_case_3_a_shared_scale_is_named_after_its_first_reader(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y, float[n] u) <float s = {1.0}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
            p = QuantizeLinear(x, s, z)
            u = DequantizeLinear(p, s, z)
        }""")
    for node, path in zip(model.graph, ("query", "query", "key", "key"), strict=True):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", "model", f"model.{path}", "operation"])
    NameAfterModulesPass("model")(model)
    assert "query.scale" in model.graph.initializers


def test_only_a_whole_prefix_is_left_out(graphs: Graphs) -> None:
    model = scoped(graphs, None, None, "model/modelling.a", "model/model.model.b", None)
    NameAfterModulesPass("model")(model)
    assert names(model)[2:4] == ["modelling.a/Mul", "model.b/Mul"]


def test_outputs_alone_are_a_change_too(graphs: Graphs) -> None:
    model = scoped(graphs, None, None, None, None, None)
    NameAfterModulesPass("model")(model)
    model.graph[0].outputs[0].name = "other"
    assert NameAfterModulesPass("model")(model).modified
