from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from calibration import calibrate
from exporters.io_signature import example_inputs, token_inputs
from exporters.onnx.export import export_onnx
from exporters.onnx.trace import OPSETS
from exporters.onnx.translation import translations
from qdq.models.outputs import BaseOutput
from qdq.quantization.quantizer import Mode, Quantizer
from qdq.quantization.spec import QuantSpec
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

SPECS = {
    "int8": {},
    "int8 affine": {"symmetric": False},
    "uint8": {"signed": False},
    "uint8 affine": {"signed": False, "symmetric": False},
    "int8 narrow": {"narrow_range": True},
    "int8 narrow affine": {"narrow_range": True, "symmetric": False},
    "int7": {"bits": 7},
    "uint7 affine": {"bits": 7, "signed": False, "symmetric": False},
    "int4": {"bits": 4},
    "int4 narrow": {"bits": 4, "narrow_range": True},
    "uint4 affine": {"bits": 4, "signed": False, "symmetric": False},
    "int2": {"bits": 2},
    "int8 per row": {"granularity": "per-axis(0)"},
    "uint8 affine per row": {"signed": False, "symmetric": False, "granularity": "per-axis(0)"},
    "int8 affine per column": {"symmetric": False, "granularity": "per-axis(-1)"},
    "int5 narrow per column": {"bits": 5, "narrow_range": True, "granularity": "per-axis(1)"},
}
SHAPE = (3, 254)


def quantizer(values: dict[str, Any], generator: torch.Generator) -> Quantizer:
    spec = QuantSpec.from_dict(values)
    made = Quantizer(spec, shape=spec.scale_shape(SHAPE))
    shape = made.scale.shape
    scale = torch.rand(shape, generator=generator) * 0.1 + 0.05
    zero = 0 if spec.signed else (spec.qmax + 1) // 2
    zero_point = torch.full(shape, zero, dtype=torch.int32)
    if not spec.symmetric:
        zero_point = torch.randint(spec.qmin, spec.qmax + 1, shape, generator=generator, dtype=torch.int32)
    made.set_scale(scale, zero_point)
    made.mode = Mode.QUANTIZE
    return made


class All(nn.Module):
    def __init__(self, made: list[Quantizer]) -> None:
        super().__init__()
        self.made = nn.ModuleList(made)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(one(x) for one in self.made)


def exported(model: nn.Module, names: list[str], folder: Path) -> tuple[onnx.ModelProto, ort.InferenceSession]:
    """The file of a model with one output per name, and a session that runs it as it is written."""
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(SHAPE),),
        input_names=["x"],
        output_names=names,
        opset_version=18,
        custom_translation_table=translations(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(folder / "all.onnx")
    proto = onnx.load(folder / "all.onnx")
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return proto, ort.InferenceSession(proto.SerializeToString(), options)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's exporter, about itself
def test_every_spec_rounds_to_the_same_values_as_torch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model = All([quantizer(values, generator) for values in SPECS.values()])
    ties = (torch.arange(-127, 127) + 0.5) * model.made[0].scale  # type: ignore[operator]
    x = torch.stack([ties, torch.randn(254, generator=generator) * 5, torch.linspace(-1e6, 1e6, 254)])
    proto, session = exported(model, list(SPECS), tmp_path)
    found = session.run(None, {"x": x.numpy()})
    with torch.no_grad():
        expected = model(x)
    for name, ours, theirs in zip(SPECS, expected, found, strict=True):
        np.testing.assert_array_equal(theirs, ours.numpy(), err_msg=name)
    clips = sum(node.op_type == "Clip" for node in proto.graph.node)
    assert clips == sum("narrow" in name or "8" not in name for name in SPECS)


DYNAMIC: dict[str, dict[str, Any]] = {
    "uint8 affine": {"signed": False, "symmetric": False},
    "int8": {},
    "uint8 symmetric": {"signed": False},
    "int5": {"bits": 5},
    "int8 per token": {"granularity": "per-token"},
    "uint4 affine per token": {"bits": 4, "signed": False, "symmetric": False, "granularity": "per-token"},
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's exporter, about itself
def test_ranges_of_the_tensor_itself_are_those_of_torch(tmp_path: Path) -> None:
    made = [Quantizer(QuantSpec.from_dict({"dynamic": True, **values})) for values in DYNAMIC.values()]
    model = All(made).eval()
    for one in made:
        one.mode = Mode.QUANTIZE
    proto, session = exported(model, list(DYNAMIC), tmp_path)
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count("DynamicQuantizeLinear") == 1
    assert operators.count("QuantizeLinear") == 3

    generator = torch.Generator().manual_seed(0)
    for x in (
        torch.randn(SHAPE, generator=generator),
        torch.rand(SHAPE, generator=generator) + 3,
        torch.zeros(SHAPE),
        torch.randn(SHAPE, generator=generator) * torch.tensor([1e-3, 1.0, 1e4])[:, None],
    ):
        with torch.no_grad():
            expected = model(x)
        for name, ours, theirs in zip(DYNAMIC, expected, session.run(None, {"x": x.numpy()}), strict=True):
            np.testing.assert_array_equal(theirs, ours.numpy(), err_msg=name)


class Tiny(nn.Module):
    """An embedding, a normalization and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=50)
        self.word = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)
        self.dense = nn.Linear(16, 24)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseOutput:
        hidden = nn.functional.gelu(self.dense(self.norm(self.word(input_ids))))
        return BaseOutput(last_hidden_state=hidden * attention_mask[..., None])


RECIPE = Recipe.from_dict(
    {
        "name": "tiny",
        "rules": [
            {"module": "dense", "slot": "input", "spec": {"signed": False, "symmetric": False}},
            {"module": "*", "slot": "weight", "spec": {"granularity": "per-axis(0)"}},
        ],
    }
)
EVERY_DAY = (18, 21, 25)


@pytest.mark.parametrize(
    "opset", [pytest.param(opset, marks=() if opset in EVERY_DAY else pytest.mark.slow) for opset in OPSETS]
)
def test_every_opset_gives_a_valid_file_that_computes_the_same(opset: int, tmp_path: Path) -> None:
    model = Tiny().eval()
    inputs = token_inputs("input_ids", "attention_mask")
    batches = [
        example_inputs(inputs, batch_size=b, seq_len=s, vocab_size=50, padding=2, seed=b) for b, s in ((2, 5), (3, 9))
    ]
    quantize(model, RECIPE)
    calibrate(model, batches)
    export_onnx(model, tmp_path / "plain.onnx", target="openvino", opset=opset)
    proto = onnx.load(tmp_path / "plain.onnx")
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": opset}
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)

    export_onnx(model, tmp_path / "integer.onnx", target="onnxruntime", opset=opset)
    with torch.no_grad():
        for batch in batches:
            expected = model(**batch).last_hidden_state.numpy()
            arrays = {name: value.numpy() for name, value in batch.items()}
            for file in ("plain.onnx", "integer.onnx"):
                (found,) = ort.InferenceSession(tmp_path / file).run(None, arrays)
                np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=file)


def test_opsets_are_those_that_have_been_tried() -> None:
    assert range(18, 26) == OPSETS
    assert set(EVERY_DAY) < set(OPSETS)
