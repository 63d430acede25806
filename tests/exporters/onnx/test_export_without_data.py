"""Exports of recipes that need no calibration data: dynamic ranges and weight-only quantization."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters.onnx.export import export_onnx
from exporters.verification.verify import verify
from qdq.errors import ExportError
from qdq.quantization.quantizer import Mode, set_mode
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.models.model import Model
    from tests.exporters.conftest import TinyModels
    from tests.exporters.onnx.conftest import Graphs


def without_data(tiny_models: TinyModels, recipe: str, **changes: Any) -> Model:
    model: Model = tiny_models.model(**changes)
    quantize(model, recipe)
    set_mode(model, Mode.QUANTIZE)
    return model


@pytest.mark.parametrize(
    ("recipe", "target", "product"),
    [
        ("dynamic", "onnxruntime", "MatMulIntegerToFloat"),
        ("weight-only-int8", "onnxruntime", "MatMulNBits"),
        ("weight-only-int8", "openvino", None),
        ("weight-only-int8", "tensorrt", None),
        ("weight-only-int4", "onnxruntime", "MatMulNBits"),
        ("weight-only-int4", "openvino", None),
    ],
)
def test_without_data_the_file_computes_the_same(
    tiny_models: TinyModels, recipe: str, target: str, product: str | None, tmp_path: Path
) -> None:
    model, path = without_data(tiny_models, recipe, intermediate_size=64), tmp_path / "model.onnx"
    exported = export_onnx(model, path, target=target, recipe=NO_TABLES if target == "tensorrt" else None)
    assert exported.notes == ()
    report = verify(model, path, tiny_models.batches(model), runtime={"tensorrt": "reference"}.get(target, target))
    assert report.problems == []
    nodes = Counter(node.op_type for node in onnx.load(path).graph.node)
    if product:
        assert nodes[product] == len(tiny_models.LINEARS)
    assert nodes["DynamicQuantizeLinear"] == (4 if recipe == "dynamic" else 0), "query, key and value share one"
    assert len([row for row in report.segments if row.name.endswith("_quantizer")]) == nodes["DynamicQuantizeLinear"]


NO_TABLES = Recipe.from_dict(
    {
        "name": "weights",
        "rules": [
            {"module": "encoder.*", "kind": "linear", "slot": "weight", "spec": {"granularity": "per-axis(0)"}},
        ],
    }
)


def test_four_bits_take_half_a_byte(tiny_models: TinyModels, graphs: Graphs, tmp_path: Path) -> None:
    model = without_data(tiny_models, "weight-only-int4", hidden_size=64, intermediate_size=128)
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    weights = [
        array for name, array in graphs.stored(tmp_path / "model.onnx").items() if name.endswith("MatMul_weight")
    ]
    numbers = sum(model.get_submodule(f"encoder.layers.0.{name}").weight.numel() for name in tiny_models.LINEARS)
    assert sum(array.nbytes for array in weights) == numbers / 2


def test_four_bits_take_half_a_byte_for_openvino_too(tiny_models: TinyModels, tmp_path: Path) -> None:
    model, path = (
        without_data(tiny_models, "weight-only-int4", hidden_size=64, intermediate_size=128),
        tmp_path / "m.onnx",
    )
    export_onnx(model, path, target="openvino")
    kinds = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    narrow = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type in kinds]
    numbers = sum(model.get_submodule(f"encoder.layers.0.{name}").weight.numel() for name in tiny_models.LINEARS)
    assert sum(len(tensor.raw_data) for tensor in narrow) == numbers / 2 * (1 + 1 / 32)  # a zero point for every 32
    assert verify(model, path, tiny_models.batches(model), runtime="openvino").problems == []


def test_a_defect_is_found_where_ranges_are_dynamic(tiny_models: TinyModels, tmp_path: Path) -> None:
    model, path = without_data(tiny_models, "dynamic"), tmp_path / "model.onnx"
    export_onnx(model, path, target="onnxruntime")
    proto = onnx.load(path)
    (tensor,) = (t for t in proto.graph.initializer if t.name == "encoder.layers.0.feed_forward.up.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(proto, path)
    report = verify(model, path, tiny_models.batches(model))
    wrong = [row.name for row in report.segments if row.wrong]
    assert wrong == [f"encoder.layers.0.feed_forward.down.input_quantizer{part}" for part in (".scale", "")]


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_target_that_needs_ranges_says_how_to_get_them(tiny_models: TinyModels, target: str, tmp_path: Path) -> None:
    model = without_data(tiny_models, "dynamic")
    with pytest.raises(ExportError, match=r"no ranges.*calibrate with --calib-data") as caught:
        export_onnx(model, tmp_path / "model.onnx", target=target)
    assert target in str(caught.value)
    assert "  - no range for encoder.layers.0.attention.query.input_quantizer" in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_groups_need_an_opset_that_has_blocks(tiny_models: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset 21 or above, this is 20"):
        export_onnx(without_data(tiny_models, "weight-only-int4"), tmp_path / "m.onnx", target="onnxruntime", opset=20)


def test_openvino_takes_groups_without_a_rest(tiny_models: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"feed_forward.down.weight: groups of 32 leave a rest of 16 in a width of 48"
    ):
        export_onnx(without_data(tiny_models, "weight-only-int4"), tmp_path / "m.onnx", target="openvino")
