"""What an export refuses, and how it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from exporters.interface import ExportInterface
from exporters.onnx.export import check_options, export_onnx
from qdq.errors import CalibrationError, ExportError
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels


def test_a_recipe_that_the_target_cannot_run_is_refused_with_every_slot(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    model = tiny_models.calibrated("tensorrt")
    before = {str(slot): (quantizer.spec, quantizer.mode) for slot, quantizer in named_slots(model)}
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt", recipe="onnxruntime")
    message = str(caught.value)
    assert message.startswith("target tensorrt cannot run this recipe: 9 problems\n")
    for name in tiny_models.LINEARS:
        assert f"encoder.layers.0.{name}.input: TensorRT takes symmetric int8, this is uint8 affine" in message
    for name in ("word", "position", "token_type"):
        assert f"embeddings.{name}.weight: TensorRT cannot look up quantized tables" in message
    assert not list(tmp_path.iterdir())
    assert {str(slot): (quantizer.spec, quantizer.mode) for slot, quantizer in named_slots(model)} == before


def test_uncalibrated_slots_are_all_named(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.model()
    quantize(model, "onnxruntime")
    with pytest.raises(CalibrationError, match="not calibrated") as caught:
        export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    shared = "encoder.layers.0.attention.query.input_quantizer"
    for name in (shared, *(f"encoder.layers.0.{name}.input_quantizer" for name in tiny_models.LINEARS[3:])):
        assert name in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_recipe_with_slots_that_calibration_did_not_see(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.calibrated("onnxruntime")
    for slot, quantizer in named_slots(model):
        if slot.kind == "matmul":
            quantizer.range = None
    with pytest.raises(CalibrationError, match=r"4 problems\n.*scores\.input_quantizer"):
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_a_float_model_has_no_target(tiny_models: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not quantized: calibrate it first"):
        export_onnx(tiny_models.model(), tmp_path / "model.onnx", target="onnxruntime")


def test_a_recipe_without_a_target_is_refused(tiny_models: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a recipe needs a target"):
        export_onnx(tiny_models.model(), tmp_path / "model.onnx", target=None, recipe="linear")


@pytest.mark.parametrize(
    ("target", "opset", "words"),
    [
        ("tensor-rt", 21, "no target 'tensor-rt': it must be one of onnxruntime, openvino, tensorrt"),
        ("tensorrt", 17, "opset 17 is not supported: it must be from 18 to 25"),
        (None, 26, "opset 26 is not supported: it must be from 18 to 25"),
        (None, 0, "opset 0 is not supported"),
    ],
)
def test_targets_and_opsets_that_do_not_exist(target: str | None, opset: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=words):
        check_options(target, opset)
    with pytest.raises(ExportError, match=words):
        export_onnx(torch.nn.Linear(2, 2), tmp_path / "model.onnx", target=target, opset=opset)
    assert not list(tmp_path.iterdir())


def test_all_that_is_wrong_with_the_options_is_told_at_once() -> None:
    with pytest.raises(ExportError) as caught:
        check_options("tensor-rt", 17, ExportInterface(dtype="fp8"), "sse")  # type: ignore[arg-type]
    phrases = ("4 problems", "no target 'tensor-rt'", "opset 17 is not", "no type 'fp8'", "no instruction set 'sse'")
    assert [phrase for phrase in phrases if phrase not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("target", "opset", "interface", "words"),
    [
        (
            "onnxruntime",
            21,
            ExportInterface(dtype="fp16"),
            "target onnxruntime has no fp16: its kernels",
        ),
        ("openvino", 21, ExportInterface(dtype="bf16"), "target openvino has no bf16"),
        ("tensorrt", 18, ExportInterface(dtype="fp16"), "fp16 needs opset 19 or above, this is 18"),
        (None, 21, ExportInterface(dtype="fp8"), "no type 'fp8': it must be one of fp32, fp16, bf16"),  # type: ignore[arg-type]
        (None, 21, ExportInterface(pooling="mean", cache="first"), "a cache is for decoders"),
    ],
)
def test_invalid_options_are_refused(
    tiny_models: TinyModels, target: str | None, opset: int, interface: ExportInterface, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=words):
        export_onnx(tiny_models.model(), tmp_path / "model.onnx", target=target, opset=opset, interface=interface)
    assert not list(tmp_path.iterdir())
