"""Exports in half precision."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from exporters.interface import ExportInterface
from exporters.onnx.export import export_onnx
from exporters.verification.verify import verify
from qdq.errors import ExportError
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.interface import DType
    from tests.exporters.conftest import TinyModels


@pytest.mark.parametrize("dtype", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_half_precision_has_scales_of_its_own_type(tiny_models: TinyModels, dtype: DType, tmp_path: Path) -> None:
    model, path, interface = tiny_models.calibrated("tensorrt"), tmp_path / "model.onnx", ExportInterface(dtype=dtype)
    export_onnx(model, path, target="tensorrt", interface=interface)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    kind = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[dtype]
    assert {tensor.data_type for tensor in proto.graph.initializer} == {
        kind, onnx.TensorProto.INT8, onnx.TensorProto.INT64
    }  # fmt: skip
    assert {value.type.tensor_type.elem_type for value in proto.graph.output} == {kind}
    runtime = {"fp16": "reference", "bf16": "evaluator"}[dtype]
    report = verify(model, path, tiny_models.batches(model), runtime=runtime, interface=interface)
    assert report.problems == []
    assert len([row for row in report.segments if row.unit == "steps"]) == 8
    assert min(row.expected_float_sqnr_db for row in report.end_to_end) > 20
    wrong = copy.deepcopy(proto)
    scale = next(
        t for t in wrong.graph.initializer if t.name == "encoder.layers.0.feed_forward.up.input_quantizer.scale"
    )
    scale.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(scale) * 1.05).astype(scale_type(dtype)), scale.name))
    onnx.save(wrong, path)
    report = verify(model, path, tiny_models.batches(model), runtime=runtime, interface=interface)
    assert report.first_wrong == "encoder.layers.0.feed_forward.up.input_quantizer"


def scale_type(dtype: str) -> Any:
    return np.float16 if dtype == "fp16" else np.dtype("bfloat16")


def test_scales_that_half_precision_cannot_hold_are_all_named(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.calibrated("tensorrt")
    for slot, quantizer in named_slots(model):
        if slot.module.endswith(("scores", "up")) and slot.name == "input":
            quantizer.scale.fill_(1e-9)
    with pytest.raises(ExportError, match=r"fp16 holds scales from .*: 2 problems") as caught:
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt", interface=ExportInterface(dtype="fp16"))
    assert "encoder.layers.0.attention.scores.input: its scale 1e-09 is out of range" in str(caught.value)
    assert next(model.parameters()).dtype == torch.float32
