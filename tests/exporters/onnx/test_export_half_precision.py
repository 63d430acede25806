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
from exporters.onnx.precision import to_dtype
from exporters.verification.verify import verify
from qdq.errors import ExportError
from qdq.quantization.transform import Transform
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
            quantizer.scale.fill_(1e6)
    with pytest.raises(ExportError, match=r"fp16 holds scales up to .*: 2 problems") as caught:
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt", interface=ExportInterface(dtype="fp16"))
    assert "encoder.layers.0.attention.scores.input: its scale 1e+06 is out of range" in str(caught.value)
    assert next(model.parameters()).dtype == torch.float32


UP = "encoder.layers.0.feed_forward.up"


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-2])
def test_a_weak_channel_is_no_reason_to_refuse_a_file(tiny_models: TinyModels, tmp_path: Path, size: float) -> None:
    model, path, interface = tiny_models.calibrated("tensorrt"), tmp_path / "model.onnx", ExportInterface(dtype="fp16")
    weak = next(quantizer for slot, quantizer in named_slots(model) if str(slot) == f"{UP}.weight")
    with torch.no_grad():
        weight = model.get_submodule(UP).weight
        weight[3] *= size
        weak.scale[3] = max(float(weight[3].abs().max()) / 127, float(torch.finfo(torch.float32).tiny))
    exported = export_onnx(model, path, target="tensorrt", interface=interface)
    assert any(f"{UP}.weight (1 of 48)" in note for note in exported.notes) == (size < 1e-6)
    report = verify(model, path, tiny_models.batches(model), runtime="reference", interface=interface)
    assert report.problems == []
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    scale = next(array for name, array in stored.items() if name.startswith(f"{UP}.weight_quantizer.scale"))
    assert scale.dtype == np.float16
    assert (scale > 0).all()


@pytest.mark.parametrize("target", [None, "tensorrt"])
def test_a_weight_beyond_float16_is_refused_by_name(tiny_models: TinyModels, tmp_path: Path, target: str) -> None:
    model = tiny_models.calibrated("tensorrt")
    with torch.no_grad():
        model.get_submodule(UP).weight[0, 0] = 1e5
        model.get_submodule(UP).bias[1] = -2e5
    with pytest.raises(ExportError, match=r"6\.55e\+04, larger ones would be infinite: .* fp32 or bf16") as caught:
        export_onnx(model, tmp_path / "model.onnx", target=target, interface=ExportInterface(dtype="fp16"))
    assert f"{UP}.weight: 1 of" in str(caught.value)
    assert f"{UP}.bias: 1 of" in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()
    assert bool(torch.isfinite(model.get_submodule(UP).weight).all())
    export_onnx(model, tmp_path / "model.onnx", target=target, interface=ExportInterface(dtype="bf16"))


def test_a_smoothing_scale_beyond_float16_is_bounded_with_its_inverse(tiny_models: TinyModels) -> None:
    model = tiny_models.calibrated("tensorrt")
    linear = model.get_submodule(UP)
    factor = torch.ones(linear.in_features)
    factor[2] = 7.8e4
    linear.input_quantizer.transform = Transform(smoothing_scale=factor)
    linear.weight_quantizer.transform = Transform(smoothing_scale=1 / factor)
    to_dtype(model, "fp16")
    ours, theirs = linear.input_quantizer.transform.factor, linear.weight_quantizer.transform.factor
    assert bool(torch.isfinite(ours.half()).all())
    torch.testing.assert_close(ours * theirs, torch.ones_like(ours))
    assert bool((ours[:2] == 1).all())
