"""A checkpoint in float8: what its file holds, its verification, and who runs it or refuses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters.interface import ExportInterface
from exporters.onnx.export import export_onnx
from exporters.tensorrt.build import build
from exporters.tensorrt.lint.lint import lint
from exporters.tensorrt.onnx_file import read_onnx_file
from exporters.tensorrt.profiles import default_profile
from exporters.tensorrt.report import engine_report
from exporters.verification.verify import verify
from qdq import checkpoint
from qdq.errors import ExportError
from qdq.quantization.spec import PerAxis, QuantSpec
from qdq.quantization.wrap import named_slots
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.tensorrt.backend import Backend
    from tests.exporters.conftest import TinyModels

SMALL = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "initializer_range": 0.1}
Exported = tuple[Any, "Path", ExportInterface]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(
    request: pytest.FixtureRequest, tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    path, interface = tmp_path_factory.mktemp("float8") / "model.onnx", ExportInterface(dtype=request.param)
    model = tiny_models.calibrated("fp8", **SMALL)
    export_onnx(model, path, target="tensorrt", interface=interface)
    return model, path, interface


def damaged(path: Path, folder: Path, kind: type) -> Path:
    """The first stored tensor of a type, halved."""
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if "up" in t.name and numpy_helper.to_array(t).dtype == kind)
    halved = (numpy_helper.to_array(tensor).astype(np.float32) / 2).astype(kind)
    tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))
    onnx.save(proto, folder / "damaged.onnx")
    return folder / "damaged.onnx"


def test_weights_are_stored_as_ml_dtypes_rounds_them(exported: Exported) -> None:
    model, path, _ = exported
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    codes = [array for array in stored.values() if array.dtype == ml_dtypes.float8_e4m3fn and array.ndim == 2]
    assert len(codes) == 6
    linear = model.encoder.layers[0].feed_forward.up
    weight = linear.weight.detach().float().numpy()
    steps = weight / linear.weight_quantizer.scale.numpy()[:, None]
    want = np.clip(steps, -448, 448).astype(ml_dtypes.float8_e4m3fn).T.astype(np.float32)
    assert any(array.shape == want.shape and (array.astype(np.float32) == want).all() for array in codes)


def test_verification_holds_by_segment_and_end_to_end(exported: Exported, tiny_models: TinyModels) -> None:
    model, path, interface = exported
    report = verify(model, path, tiny_models.batches(model), runtime="reference", interface=interface)
    assert report.holds, report.problems
    segments = [row for row in report.segments if row.unit == "steps"]
    assert len(segments) == 4
    if interface.dtype == "fp32":
        assert sum(row.ties for row in segments) <= 2


def test_the_evaluator_of_onnx_agrees(exported: Exported, tiny_models: TinyModels) -> None:
    """Which knows float8 by itself, and shares nothing with ONNX Runtime."""
    model, path, interface = exported
    report = verify(model, path, tiny_models.batches(model)[:1], runtime="evaluator", interface=interface)
    assert report.holds, report.problems


def test_a_wrong_weight_is_found(exported: Exported, tiny_models: TinyModels, tmp_path: Path) -> None:
    model, path, interface = exported
    bad = damaged(path, tmp_path, ml_dtypes.float8_e4m3fn)
    report = verify(model, bad, tiny_models.batches(model)[:1], runtime="reference", interface=interface)
    assert report.first_wrong == "encoder.layers.0.feed_forward.down.input_quantizer"


def test_it_lints_clean_and_tensorrt_multiplies_float8(exported: Exported, rtx: Backend, tmp_path: Path) -> None:
    _, path, interface = exported
    source = read_onnx_file(path)
    profiles = [default_profile(source.inputs, longest=32)]
    for version in ("11.1", "10.16"):
        assert lint(source, target=f"tensorrt:{version}", profiles=profiles).findings == ()
    engine = build(path, tmp_path / "m.plan", profiles=profiles, backend=rtx)
    report = engine_report(source.model, engine.kernels)
    assert report.count("linear") == (6, 6, 7)  # the pooler is in float
    assert {row.runs_in for row in report.products if row.wanted == "fp8"} == {"fp8"}
    assert all(row.merged for row in report.merged)
    if interface.dtype == "fp16":
        assert [(row.fused, row.runs_in) for row in report.attentions] == [(True, "fp16")]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_cpu_targets_refuse_the_recipe_and_say_what_to_do(tiny_models: TinyModels, tmp_path: Path, target: str) -> None:
    model = tiny_models.calibrated("fp8", **SMALL)
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "m.onnx", target=target, recipe="fp8")
    assert "encoder.layers.0.attention.query.input: its kernels on CPUs have no float8" in str(caught.value)
    assert f"--recipe {target}" in str(caught.value)


def test_a_checkpoint_in_float8_has_the_ranges_for_other_targets(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.calibrated("fp8", **SMALL)
    done = export_onnx(model, tmp_path / "m.onnx", target="onnxruntime")
    assert done.recipe is not None
    assert done.recipe.name == "onnxruntime"
    assert verify(model, tmp_path / "m.onnx", tiny_models.batches(model)[:1]).holds


def test_an_older_opset_is_refused(tiny_models: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="float8 needs opset 19 or above, this is 18"):
        export_onnx(tiny_models.calibrated("fp8", **SMALL), tmp_path / "m.onnx", target="tensorrt", opset=18)


def test_a_checkpoint_keeps_it(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.calibrated("fp8", **SMALL)
    checkpoint.save(model, tmp_path / "q", recipe=load_recipe("fp8"), calibration={})
    loaded = checkpoint.load(tmp_path / "q")
    specs = {spec for _, quantizer in named_slots(loaded) if (spec := quantizer.spec) is not None}
    kind = "float8e4m3fn"
    assert specs == {QuantSpec(format=kind), QuantSpec(format=kind, granularity=PerAxis(0))}
    batch = tiny_models.batches(model)[0]
    assert (loaded(**batch).last_hidden_state == model(**batch).last_hidden_state).all()
