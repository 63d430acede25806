"""Checkpoints with transforms, chosen roundings and corrected biases: what is exported computes what they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from calibration import calibrate_and_refine
from exporters.directory import export, verify
from exporters.interface import ExportInterface
from qdq.checkpoint import save
from qdq.models.huggingface import save_model
from qdq.models.model import EncoderModel
from qdq.models.registry import FAMILIES, build, configure
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from exporters.interface import DType

SMALL: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.1,
}
PAIRS = [
    ("bert", "onnxruntime"),
    ("albert", "openvino"),
    ("megatron-bert", "tensorrt"),
]
OTHERS = [
    (family, target)
    for family in FAMILIES
    for target in ("onnxruntime", "openvino", "tensorrt")
    if family not in ("realm", "qdqbert") and (family, target) not in PAIRS
]


def checkpoint(folder: Path, family: str, recipe: str) -> Path:
    torch.manual_seed(0)
    own = {"embedding_size": 16} if family == "albert" else {}
    model = build(configure(family, **{**SMALL, **own})).eval()
    assert isinstance(model, EncoderModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter[3] += 4
    quantize(model, recipe)
    summary = calibrate_and_refine(model, batches, load_recipe(recipe).refinement)
    assert summary.refinement["refined"] == 12
    save(model, folder, recipe=load_recipe(recipe), calibration=summary.to_dict())
    return folder


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": (ids := torch.randint(2, 83, (4, length), generator=generator)), "attention_mask": ids * 0 + 1}
        for length in (12, 30, 20)
    ]


@pytest.mark.parametrize(
    ("family", "target"), [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)]
)
def test_the_file_computes_what_the_checkpoint_computes(family: str, target: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c", family, target)
    export(source, tmp_path / "out", target=target)
    result = verify(source, tmp_path / "out")
    assert result.holds, result


@pytest.mark.slow
@pytest.mark.parametrize(("family", "multiplications"), [("roberta-prelayernorm", 2), ("bert", 6)])
def test_what_is_left_to_compute(family: str, multiplications: int, tmp_path: Path) -> None:
    """With pre-norm the factors are in the norms, but for what the activation puts out; with post-norm each costs one.

    The shift costs nothing in either.
    """
    source = checkpoint(tmp_path / "c", family, "openvino")
    export(source, tmp_path / "out", target="openvino")
    export(source, tmp_path / "float", target=None)
    graphs = {name: onnx.load(tmp_path / name / "model.onnx").graph for name in ("out", "float")}
    counts = {
        name: {op: sum(node.op_type == op for node in graph.node) for op in ("Mul", "Sub")}
        for name, graph in graphs.items()
    }
    assert counts["out"]["Mul"] - counts["float"]["Mul"] == multiplications
    assert counts["out"]["Sub"] == counts["float"]["Sub"]


def test_float_export_of_a_refined_checkpoint_is_the_float_model(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c", "bert", "onnxruntime")
    torch.manual_seed(0)
    plain = build(configure("bert", **SMALL)).eval()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "norm" in name:
                parameter[3] += 4
    (tmp_path / "plain").mkdir()
    save_model(plain, tmp_path / "plain")
    export(source, tmp_path / "a", target=None)
    export(tmp_path / "plain", tmp_path / "b", target=None)
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "every"), [("fp16", 1), ("bf16", 4)])
def test_in_half_precision_a_scale_that_is_off_by_5_percent_is_found(dtype: DType, every: int, tmp_path: Path) -> None:
    """Also behind a transform, where a single value may be off by more than that."""
    source = checkpoint(tmp_path / "c", "bert", "tensorrt")
    export(source, tmp_path / "out", target="tensorrt", interface=ExportInterface(dtype=dtype))
    assert verify(source, tmp_path / "out").first_wrong is None
    proto = onnx.load(tmp_path / "out" / "model.onnx")
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    quantizers = {node.name.rpartition("/")[0]: node for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    assert len(quantizers) == 20
    for slot, node in list(quantizers.items())[::every]:
        scale = constants[node.input[1]]
        right = numpy_helper.to_array(scale)
        scale.CopyFrom(numpy_helper.from_array((right.astype(np.float32) * 1.05).astype(right.dtype), scale.name))
        onnx.save(proto, tmp_path / "out" / "model.onnx")
        assert verify(source, tmp_path / "out").first_wrong == slot
        scale.CopyFrom(numpy_helper.from_array(right, scale.name))


@pytest.mark.slow
def test_another_target_keeps_the_transforms(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c", "bert", "onnxruntime")
    exported = export(source, tmp_path / "out", target="tensorrt")
    assert exported.recipe is not None
    assert verify(source, tmp_path / "out").holds
