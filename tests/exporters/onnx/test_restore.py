from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from exporters.interface import ExportInterface
from exporters.onnx.export import export_onnx
from exporters.onnx.restore import restored_on_error
from qdq.errors import CalibrationError, ExportError
from qdq.quantization.quantizer import Mode, set_mode
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import apply_recipe
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from tests.exporters.conftest import TinyModels


def state(model: nn.Module) -> list[Any]:
    """Every quantizer, the very object, and what hangs on it."""
    return [
        (str(slot), id(quantizer), quantizer.spec, quantizer.mode, getattr(quantizer, "scale", None))
        for slot, quantizer in named_slots(model)
    ]


def test_a_scale_that_half_precision_cannot_hold_leaves_the_model_as_it_was(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    """The recipe was changed by then: uint8 activations cannot run on TensorRT."""
    model = tiny_models.calibrated("onnxruntime")
    set_mode(model, Mode.QUANTIZE)
    query = model.get_submodule("encoder.layers.0.attention.query")
    query.bias_correction = torch.full_like(query.bias, 0.25)
    query.input_quantizer.range.amax.fill_(1e9)
    query.input_quantizer.range.lower.fill_(-1e9)
    query.input_quantizer.range.upper.fill_(1e9)
    before, batch = state(model), tiny_models.batches(model)[0]
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
    with pytest.raises(ExportError, match=r"(?s)fp16 holds scales up to .*query\.input: its scale"):
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt", interface=ExportInterface(dtype="fp16"))
    assert state(model) == before
    with torch.no_grad():
        assert torch.equal(model(**batch).last_hidden_state, expected)
    assert not (tmp_path / "model.onnx").exists()


def test_slots_that_are_not_calibrated_leave_the_model_as_it_was(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.calibrated("onnxruntime")
    model.get_submodule("encoder.layers.0.attention.query").weight_quantizer.range = None
    model.get_submodule("encoder.layers.0.attention.scores").input_quantizer.range = None
    before = state(model)
    with pytest.raises(CalibrationError, match=r"scores\.input"):
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt")
    assert state(model) == before


def test_what_ends_well_stays(tiny_models: TinyModels) -> None:
    model = tiny_models.calibrated("onnxruntime")
    before = state(model)
    with restored_on_error(model):
        apply_recipe(model, load_recipe("tensorrt"))
    assert state(model) != before
