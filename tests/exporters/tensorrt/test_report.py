"""The report: by hand on small tables of kernels, and on engines that TensorRT-RTX built."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx_ir as ir
import pytest

from exporters.onnx.export import export_onnx
from exporters.tensorrt.build import build
from exporters.tensorrt.kernels import Kernel
from exporters.tensorrt.lint.lint import lint
from exporters.tensorrt.onnx_file import read_onnx_file
from exporters.tensorrt.profiles import Profile, default_profile
from exporters.tensorrt.report import EngineReport, engine_report
from tests.exporters.tensorrt import defects

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.tensorrt.backend import Backend
    from tests.exporters.conftest import TinyModels
    from tests.exporters.tensorrt.conftest import BuiltEngine, DefectPlanter

SMALL = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
ATTENTION = "encoder.layers.0.attention"
QKV = tuple(f"{ATTENTION}.{name}/MatMul" for name in ("query", "key", "value"))


def kernel(name: str, *nodes: str, kind: str = "gemm", type_: str = "int8") -> Kernel:
    return Kernel(name, kind, (type_,), (type_,), ("fp32",), nodes)


def test_the_real_engine_runs_everything_in_int8(built_engine: BuiltEngine, small_model: Path) -> None:
    engine, _ = built_engine
    report = engine_report(ir.load(small_model), engine.kernels)
    assert report.count("linear") == (6, 6, 7)
    assert report.count("attention") == (2, 2, 2)
    assert [(row.name, row.fused, row.runs_in) for row in report.attentions] == [(ATTENTION, True, "int8")]
    assert [row.merged for row in report.merged] == [True]
    assert [(row.name, row.fused) for row in report.residuals] == [
        (f"{ATTENTION}.add", True),
        ("encoder.layers.0.feed_forward.add", True),
    ]
    assert report.missed == []
    assert report.precision == "fp32"
    assert EngineReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        ("weight scales on the inputs", "linear", "W3"),
        ("one operand in float", "linear", "W2"),
        ("softmax in float", "attention", "W6"),
    ],
)
def test_what_a_defect_costs_is_seen_and_explained(
    defect_planter: DefectPlanter, rtx: Backend, tmp_path: Path, name: str, kind: str, rule: str
) -> None:
    defect = next(one for one in defects.DEFECTS if one.name == name)
    source = defect_planter.planted(defect.plant)
    profiles = [default_profile(source.inputs, longest=40)]
    engine = build(source.path, tmp_path / "m.plan", profiles=profiles, backend=rtx)
    report = engine_report(source.model, engine.kernels, lint(source, profiles=profiles).reasons())
    if kind == "attention":
        (row,) = report.attentions
        assert not row.fused
        assert rule in row.reason
    else:
        linear = next(row for row in report.products if row.name == f"{ATTENTION}.output")
        assert linear.runs_in == "fp32"
        wanted_reason = [row.reason for row in report.missed if row.name == linear.name]
        assert wanted_reason == ([] if linear.wanted == "float" else [wanted_reason[0]])
        assert all(rule in reason for reason in wanted_reason)


def test_a_profile_beyond_512_tokens_splits_attention(
    defect_planter: DefectPlanter, rtx: Backend, tmp_path: Path
) -> None:
    source = defect_planter.planted(lambda model: None)
    shapes = [dict.fromkeys(source.inputs, (1, n)) for n in (8, 128, 1024)]
    model = ir.load(source.path)  # with as many positions as the profile
    table = model.graph.initializers["embeddings.position.weight"]
    import numpy as np

    table.const_value = ir.Tensor(np.zeros((1024, 64), np.float32), name=table.name)
    table.shape = ir.Shape([1024, 64])
    ir.save(model, source.path)
    profiles = [Profile(*shapes)]
    engine = build(source.path, tmp_path / "m.plan", profiles=profiles, backend=rtx)
    report = engine_report(model, engine.kernels, lint(read_onnx_file(source.path), profiles=profiles).reasons())
    (row,) = report.attentions
    assert not row.fused
    assert "W7: a profile goes up to 1024 tokens" in row.reason


def test_three_products_in_three_kernels_are_not_merged(small_model: Path) -> None:
    kernels = [kernel(name, name) for name in QKV]
    (row,) = engine_report(ir.load(small_model), kernels).merged
    assert not row.merged
    (row,) = engine_report(ir.load(small_model), [kernel("one", *QKV)]).merged
    assert row.merged
    assert set(row.names) == {f"{ATTENTION}.{name}" for name in ("query", "key", "value")}


def test_a_layer_in_float_is_missed_with_its_reason(small_model: Path) -> None:
    kernels = [kernel("one", *QKV[:2]), kernel("other", QKV[2], type_="fp16")]
    reasons = {f"{ATTENTION}.value.weight_quantizer/DequantizeLinear": ["W3: for a test"]}
    report = engine_report(ir.load(small_model), kernels, reasons)
    row = next(row for row in report.missed if row.name == f"{ATTENTION}.value")
    assert (row.wanted, row.runs_in, row.reason) == ("int8", "fp16", "W3: for a test")
    assert report.count("linear") == (2, 6, 7)


def test_a_product_that_no_kernel_names_is_unknown(small_model: Path) -> None:
    report = engine_report(ir.load(small_model), [])
    assert {row.runs_in for row in report.products} == {"unknown"}
    assert report.count("linear") == (0, 6, 7)
    assert not any(row.fused for row in (*report.attentions, *report.residuals))
    assert not any(row.merged for row in report.merged)


def test_a_rest_of_a_product_in_another_kernel_does_not_count(small_model: Path) -> None:
    rest = Kernel("__myl_MulAdd", "kgen", ("fp32",), ("fp32",), ("int8",), QKV)
    report = engine_report(ir.load(small_model), [rest, kernel("one", *QKV)])
    assert {row.runs_in for row in report.products if row.name.endswith(("query", "key", "value"))} == {"int8"}


def test_an_addition_on_its_own_is_told(small_model: Path) -> None:
    report = engine_report(ir.load(small_model), [Kernel("add", "kgen", (), (), (), (f"{ATTENTION}.add/Add",))])
    assert next((row.name, row.fused) for row in report.residuals) == (f"{ATTENTION}.add", False)


def test_attention_in_float32_is_explained(tiny_models: TinyModels, rtx: Backend, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(tiny_models.calibrated("linear", **SMALL), path, target="tensorrt")
    source = read_onnx_file(path)
    profiles = [default_profile(source.inputs, longest=40)]
    engine = build(path, tmp_path / "m.plan", profiles=profiles, backend=rtx)
    report = engine_report(source.model, engine.kernels, lint(source, profiles=profiles).reasons())
    assert report.count("linear") == (6, 6, 7)
    assert report.count("attention") == (0, 0, 2)
    (row,) = report.attentions
    assert not row.fused
    assert "--dtype fp16" in row.reason
