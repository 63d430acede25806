from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from exporters.interface import ExportInterface
from exporters.io_signature import IOSignature, token_inputs
from exporters.onnx import write
from exporters.onnx.export import check_options, export_onnx
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner
from exporters.verification.verify import sqnr_db, verify
from qdq.checkpoint import save
from qdq.errors import CalibrationError, ExportError
from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, set_mode
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from qdq.models.model import Model

TARGETS = ("onnxruntime", "openvino", "tensorrt")
LINEARS = (
    *(f"attention.{name}" for name in ("query", "key", "value", "output")),
    "feed_forward.up",
    "feed_forward.down",
)


def stored(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def float_matrices(path: Path) -> list[tuple[int, ...]]:
    arrays = stored(path).values()
    return [array.shape for array in arrays if array.dtype == np.float32 and array.ndim == 2 and min(array.shape) > 1]


def grids(path: Path) -> dict[str, tuple[float, str, int]]:
    """Scale, type and zero point of every quantizer that runs."""
    constants = stored(path)
    return {
        node.name.rpartition("/")[0]: (
            float(constants[node.input[1]]),
            str(constants[node.input[2]].dtype),
            int(constants[node.input[2]]),
        )
        for node in onnx.load(path).graph.node
        if node.op_type == "QuantizeLinear"
    }


def outputs(model: Model, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in model(**batch).items()}


# What is in a file


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_the_result_says_what_was_written(workshop: Any, target: str | None) -> None:
    _, path, exported = workshop.exported(target)
    assert exported.signature == IOSignature(token_inputs(), ("last_hidden_state", "pooler_output"))
    assert exported.to_dict() == {
        "target": target or "float",
        "recipe": None,
        "opset": 21,
        "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "outputs": ["last_hidden_state", "pooler_output"],
        "form": {},
        "isa": "any",
        "pair_sums": {},
        "notes": [],
    }
    proto = onnx.load(path)
    assert proto.producer_name == "qdq"
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == [
        *exported.signature.input_names,
        *exported.signature.outputs,
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_weights_are_stored_in_int8_and_once(workshop: Any, target: str) -> None:
    model, path, _ = workshop.exported(target)
    slots = [slot for slot, quantizer in named_slots(model) if slot.name == "weight" and quantizer.spec]
    assert len(slots) == len(LINEARS) + (0 if target == "tensorrt" else 3)
    sizes = [model.get_submodule(slot.module).weight.numel() for slot in slots]
    integers = [array.size for array in stored(path).values() if array.dtype == np.int8 and array.ndim == 2]
    assert sorted(integers) == sorted(sizes)
    tables = [tuple(getattr(model.embeddings, name).weight.shape) for name in ("word", "position", "token_type")]
    pooler = tuple(model.pooler.dense.weight.shape)
    assert sorted(float_matrices(path)) == sorted([pooler, *(tables if target == "tensorrt" else [])])


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_the_file_is_valid_and_holds_no_trace_of_the_machine(workshop: Any, target: str | None) -> None:
    _, path, _ = workshop.exported(target)
    proto = onnx.load(path)
    domains = {"", "com.microsoft"} if target == "onnxruntime" else {""}
    assert {entry.domain for entry in proto.opset_import} == domains
    if target != "onnxruntime":
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    names = [node.name for node in proto.graph.node]
    assert len(names) == len(set(names))
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    content = path.read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in content
    assert torch.__file__.removesuffix("/__init__.py").encode() not in content


def test_the_same_model_gives_the_same_bytes(workshop: Any, tmp_path: Path) -> None:
    _, path, _ = workshop.exported("onnxruntime")
    export_onnx(workshop.calibrated("onnxruntime"), tmp_path / "again.onnx", target="onnxruntime")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_onnx_runtime_runs_the_graph_as_it_is_written(workshop: Any, tmp_path: Path) -> None:
    _, path, _ = workshop.exported("onnxruntime")
    written = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert written["MatMulIntegerToFloat"] == len(LINEARS)
    assert written["DequantizeLinear"] == 0
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert run["MatMulIntegerToFloat"] == len(LINEARS)
    assert not {"SkipLayerNormalization", "BiasGelu", "EmbedLayerNormalization", "Attention"} & set(run)
    assert run["LayerNormalization"] == 3
    assert run["QuantizeLinear"] == 4  # query, key and value share one


def test_tensorrt_gets_symmetric_int8_alone(workshop: Any) -> None:
    _, path, _ = workshop.exported("tensorrt")
    proto, constants = onnx.load(path), stored(path)
    assert {node.domain for node in proto.graph.node} == {""}
    pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8, node.name
        assert not zero.any(), node.name
        assert zero.size == constants[node.input[1]].size, node.name
    gathers = [node for node in proto.graph.node if node.op_type == "Gather" and node.name.startswith("embeddings.")]
    assert [constants[node.input[0]].dtype for node in gathers] == [np.float32] * 3


def test_the_real_parser_and_builder_take_the_tensorrt_file(workshop: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT's own parser is not installed: qdq[tensorrt-rtx]")
    _, path, exported = workshop.exported("tensorrt")

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append((severity, message))

    logger = Collector()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name in exported.signature.input_names:
        profile.set_shape(name, (1, 4), (2, 16), (4, 40))
    config.add_optimization_profile(profile)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = builder.build_serialized_network(network, config)
    errors = [text for severity, text in logger.messages if severity <= trt.ILogger.Severity.ERROR]
    assert plan is not None, errors
    (layers,) = [text for _, text in logger.messages if text.startswith("Layers:")]
    assert "Int8" in layers


def test_openvino_computes_the_same(workshop: Any) -> None:
    model, path, _ = workshop.exported("openvino")
    run = OpenVINORunner(path)
    for batch in workshop.batches(model):
        found = run({name: value.numpy() for name, value in batch.items()})
        for name, expected in outputs(model, batch).items():
            assert sqnr_db(expected, found[name]) > 25, name


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_recipe_that_is_not_the_targets_own_is_exact_on_this_cpu_too(workshop: Any, target: str) -> None:
    model, path, exported = workshop.exported(target, "qdqbert")
    assert len(exported.notes) == (target == "onnxruntime")
    assert all("stored in uint8, which is exact on every CPU" in note for note in exported.notes)
    report = verify(model, path, workshop.batches(model), runtime=target)
    assert report.problems == []


@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_fewer_bits_and_narrow_ranges_run_optimized(workshop: Any, rules: Any, target: str, tmp_path: Path) -> None:
    narrow, weight = {"narrow_range": True}, {"bits": 6, "granularity": "per-axis(0)"}
    recipe = rules(narrow, weight, matmul=narrow, add={"bits": 7, "signed": False, "symmetric": False})
    model = workshop.calibrated(recipe)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, target=target)
    assert verify(model, path, workshop.batches(model), runtime=target).problems == []
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["MatMulIntegerToFloat"] == (len(LINEARS) if target == "onnxruntime" else 0)


@pytest.mark.parametrize("bits", [8, pytest.param(5, marks=pytest.mark.slow)])
def test_tokens_with_scales_of_their_own_are_multiplied_as_integers(
    workshop: Any, rules: Any, bits: int, tmp_path: Path
) -> None:
    model = workshop.calibrated(
        rules({"bits": bits, "dynamic": True, "granularity": "per-token"}, {"granularity": "per-axis(0)"})
    )
    path = tmp_path / "model.onnx"
    export_onnx(model, path, target="onnxruntime")
    assert Counter(node.op_type for node in onnx.load(path).graph.node)["MatMulIntegerToFloat"] == len(LINEARS)
    report = verify(model, path, workshop.batches(model))
    assert report.problems == []
    assert {f"encoder.layers.0.{name}.input_quantizer" for name in ("attention.query", "feed_forward.down")} <= {
        row.name for row in report.segments
    }


def test_repeated_layers_share_their_weights_and_keep_their_own_ranges(workshop: Any, tmp_path: Path) -> None:
    model = workshop.calibrated("onnxruntime", "albert", num_hidden_layers=2, embedding_size=16)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, target="onnxruntime")
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["MatMulIntegerToFloat"] == 2 * len(LINEARS)
    integers = [array for array in stored(path).values() if array.dtype == np.int8 and array.ndim == 2]
    assert len(integers) == len(LINEARS) + 3
    assert len({grids(path)[f"encoder.layers.{n}.attention.query.input_quantizer"] for n in range(2)}) == 2
    assert verify(model, path, workshop.batches(model)).problems == []


def test_weights_of_large_models_lie_beside_the_file(
    workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "EXTERNAL_ABOVE", 1000)
    model = workshop.calibrated("onnxruntime")
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    elsewhere = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert verify(model, elsewhere / "model.onnx", workshop.batches(model)).problems == []


# Changing the recipe at export


def test_a_checkpoint_of_another_recipe_gives_tensorrt_the_same_file(workshop: Any) -> None:
    own, retargeted = workshop.exported("tensorrt"), workshop.exported("tensorrt", "onnxruntime")
    assert grids(retargeted[1]) == grids(own[1])
    assert {(dtype, zero) for _, dtype, zero in grids(retargeted[1]).values()} == {("int8", 0)}
    scales = [
        {
            name: array.tolist()
            for name, array in stored(path).items()
            if name.removesuffix("_scaled").endswith("weight_quantizer.scale")
        }
        for _, path, _ in (own, retargeted)
    ]
    assert scales[0] == scales[1]
    assert len({name.removesuffix("_scaled") for name in scales[0]}) == len(LINEARS)
    exported = retargeted[2]
    assert exported.recipe == load_recipe("tensorrt")
    assert exported.notes == (
        "The checkpoint's recipe cannot run on tensorrt: its ranges were used with the preset 'tensorrt'.",
    )
    assert json.loads(json.dumps(exported.to_dict()))["recipe"]["name"] == "tensorrt"


def test_the_model_then_computes_what_the_file_computes(workshop: Any) -> None:
    model, path, _ = workshop.exported("tensorrt", "onnxruntime")
    assert verify(model, path, workshop.batches(model), runtime="reference").problems == []


def test_a_recipe_can_be_asked_for_and_ranges_stay(workshop: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(workshop.exported("tensorrt", "onnxruntime")[0])  # from onnxruntime to tensorrt, and back
    exported = export_onnx(model, tmp_path / "model.onnx", target="onnxruntime", recipe="onnxruntime")
    assert exported.recipe == load_recipe("onnxruntime")
    assert exported.notes == ()
    assert (tmp_path / "model.onnx").read_bytes() == workshop.exported("onnxruntime")[1].read_bytes()


def test_a_quantized_model_exported_without_target_is_in_float(workshop: Any, tmp_path: Path) -> None:
    model = workshop.calibrated("onnxruntime")
    exported = export_onnx(model, tmp_path / "model.onnx", target=None)
    assert exported.target == "float"
    assert not grids(tmp_path / "model.onnx")
    batch = workshop.batches(model)[0]
    found = OnnxRuntimeRunner(tmp_path / "model.onnx")({name: value.numpy() for name, value in batch.items()})
    for name, expected in outputs(workshop.model(), batch).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)


def test_a_model_in_training_is_exported_as_it_evaluates_and_goes_on_training(workshop: Any, tmp_path: Path) -> None:
    model = workshop.model().train()
    export_onnx(model, tmp_path / "model.onnx", target=None)
    assert all(part.training for part in model.modules())
    assert (tmp_path / "model.onnx").read_bytes() == workshop.exported(None)[1].read_bytes()


# Refusals


def test_a_recipe_that_the_target_cannot_run_is_refused_with_every_slot(workshop: Any, tmp_path: Path) -> None:
    model = workshop.calibrated("tensorrt")
    before = {str(slot): (quantizer.spec, quantizer.mode) for slot, quantizer in named_slots(model)}
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt", recipe="onnxruntime")
    message = str(caught.value)
    assert message.startswith("target tensorrt cannot run this recipe: 9 problems\n")
    for name in LINEARS:
        assert f"encoder.layers.0.{name}.input: TensorRT takes symmetric int8, this is uint8 affine" in message
    for name in ("word", "position", "token_type"):
        assert f"embeddings.{name}.weight: TensorRT cannot look up quantized tables" in message
    assert not list(tmp_path.iterdir())
    assert {str(slot): (quantizer.spec, quantizer.mode) for slot, quantizer in named_slots(model)} == before


def test_uncalibrated_slots_are_all_named(workshop: Any, tmp_path: Path) -> None:
    model = workshop.model()
    quantize(model, "onnxruntime")
    with pytest.raises(CalibrationError, match="not calibrated") as caught:
        export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    shared = "encoder.layers.0.attention.query.input_quantizer"
    for name in (shared, *(f"encoder.layers.0.{name}.input_quantizer" for name in LINEARS[3:])):
        assert name in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_recipe_with_slots_that_calibration_did_not_see(workshop: Any, tmp_path: Path) -> None:
    model = workshop.calibrated("onnxruntime")
    for slot, quantizer in named_slots(model):
        if slot.kind == "matmul":
            quantizer.range = None
    with pytest.raises(CalibrationError, match=r"4 problems\n.*scores\.input_quantizer"):
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_a_float_model_has_no_target(workshop: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not quantized: calibrate it first"):
        export_onnx(workshop.model(), tmp_path / "model.onnx", target="onnxruntime")


def test_a_recipe_without_a_target_is_refused(workshop: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a recipe needs a target"):
        export_onnx(workshop.model(), tmp_path / "model.onnx", target=None, recipe="linear")


# Recipes that need no data


def without_data(workshop: Any, recipe: str, **changes: Any) -> Model:
    model: Model = workshop.model(**changes)
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
    workshop: Any, recipe: str, target: str, product: str | None, tmp_path: Path
) -> None:
    model, path = without_data(workshop, recipe, intermediate_size=64), tmp_path / "model.onnx"
    exported = export_onnx(model, path, target=target, recipe=NO_TABLES if target == "tensorrt" else None)
    assert exported.notes == ()
    report = verify(model, path, workshop.batches(model), runtime={"tensorrt": "reference"}.get(target, target))
    assert report.problems == []
    nodes = Counter(node.op_type for node in onnx.load(path).graph.node)
    if product:
        assert nodes[product] == len(LINEARS)
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


def test_four_bits_take_half_a_byte(workshop: Any, tmp_path: Path) -> None:
    model = without_data(workshop, "weight-only-int4", hidden_size=64, intermediate_size=128)
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    weights = [array for name, array in stored(tmp_path / "model.onnx").items() if name.endswith("MatMul_weight")]
    numbers = sum(model.get_submodule(f"encoder.layers.0.{name}").weight.numel() for name in LINEARS)
    assert sum(array.nbytes for array in weights) == numbers / 2


def test_four_bits_take_half_a_byte_for_openvino_too(workshop: Any, tmp_path: Path) -> None:
    model, path = without_data(workshop, "weight-only-int4", hidden_size=64, intermediate_size=128), tmp_path / "m.onnx"
    export_onnx(model, path, target="openvino")
    kinds = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    narrow = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type in kinds]
    numbers = sum(model.get_submodule(f"encoder.layers.0.{name}").weight.numel() for name in LINEARS)
    assert sum(len(tensor.raw_data) for tensor in narrow) == numbers / 2 * (1 + 1 / 32)  # a zero point for every 32
    assert verify(model, path, workshop.batches(model), runtime="openvino").problems == []


def test_a_defect_is_found_where_ranges_are_dynamic(workshop: Any, tmp_path: Path) -> None:
    model, path = without_data(workshop, "dynamic"), tmp_path / "model.onnx"
    export_onnx(model, path, target="onnxruntime")
    proto = onnx.load(path)
    (tensor,) = (t for t in proto.graph.initializer if t.name == "encoder.layers.0.feed_forward.up.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(proto, path)
    report = verify(model, path, workshop.batches(model))
    wrong = [row.name for row in report.segments if row.wrong]
    assert wrong == [f"encoder.layers.0.feed_forward.down.input_quantizer{part}" for part in (".scale", "")]


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_target_that_needs_ranges_says_how_to_get_them(workshop: Any, target: str, tmp_path: Path) -> None:
    model = without_data(workshop, "dynamic")
    with pytest.raises(ExportError, match=r"no ranges.*calibrate with --calib-data") as caught:
        export_onnx(model, tmp_path / "model.onnx", target=target)
    assert target in str(caught.value)
    assert "  - no range for encoder.layers.0.attention.query.input_quantizer" in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_groups_need_an_opset_that_has_blocks(workshop: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset 21 or above, this is 20"):
        export_onnx(without_data(workshop, "weight-only-int4"), tmp_path / "m.onnx", target="onnxruntime", opset=20)


def test_openvino_takes_groups_without_a_rest(workshop: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"feed_forward.down.weight: groups of 32 leave a rest of 16 in a width of 48"
    ):
        export_onnx(without_data(workshop, "weight-only-int4"), tmp_path / "m.onnx", target="openvino")


def test_what_training_moves_is_constant_in_a_file(workshop: Any, tmp_path: Path) -> None:
    """Learned scales, and weights whose range is found in every call."""
    rules = [
        {"module": "encoder.*", "kind": "linear", "slot": "input", "spec": {"learned_scale": True}},
        {
            "module": "encoder.*",
            "kind": "linear",
            "slot": "weight",
            "spec": {"granularity": "per-axis(0)", "dynamic": True},
        },
    ]
    model = workshop.calibrated(Recipe.from_dict({"name": "trained", "rules": rules}))
    batch = workshop.batches(model)[0]
    before = outputs(model, batch)
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    for name, array in outputs(model, batch).items():
        np.testing.assert_array_equal(array, before[name])
    assert verify(model, tmp_path / "model.onnx", workshop.batches(model)).problems == []
    written = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert written["MatMulIntegerToFloat"] == len(LINEARS)


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
    workshop: Any, target: str | None, opset: int, interface: ExportInterface, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=words):
        export_onnx(workshop.model(), tmp_path / "model.onnx", target=target, opset=opset, interface=interface)
    assert not list(tmp_path.iterdir())


# A table with two readers


TABLE = {"bits": 8, "granularity": "per-axis(0)", "overflow_safe": True}
ACTIVATION = {"bits": 8, "signed": False, "symmetric": False}


def tied(*, decoder: bool) -> Recipe:
    rules: list[dict[str, Any]] = [{"module": "*embeddings.*", "kind": "embedding", "slot": "weight", "spec": TABLE}]
    if decoder:
        rules += [
            {"module": "head.decoder", "kind": "linear", "slot": slot, "spec": spec}
            for slot, spec in (("input", ACTIVATION), ("weight", TABLE))
        ]
    return Recipe.from_dict({"name": "tied", "rules": rules})


def test_an_embedding_that_is_the_output_layer_too_is_one_table(workshop: Any, tmp_path: Path) -> None:
    model, path = workshop.calibrated(tied(decoder=True), task="masked-lm"), tmp_path / "model.onnx"
    assert export_onnx(model, path, target="onnxruntime").notes == ()
    tables = [array.dtype for array in stored(path).values() if array.size == 83 * 32]
    assert tables == [np.dtype(np.int8)]
    assert "MatMulIntegerToFloat" in {node.op_type for node in onnx.load(path).graph.node}
    assert verify(model, path, workshop.batches(model)).problems == []


PRESETS = {"onnxruntime": ("onnxruntime", "dynamic", "weight-only-int8"), "openvino": ("openvino", "weight-only-int8")}
TIED = [
    (family, target, recipe)
    for family in ("bert", "qdqbert", "albert", "roberta-prelayernorm", "megatron-bert")
    for target in (None, *TARGETS)
    for recipe in PRESETS.get(str(target), (target,))
]
TIED_SAMPLE = [
    ("bert", None, None),
    ("albert", "onnxruntime", "onnxruntime"),
]


@pytest.mark.parametrize(
    ("family", "target", "recipe"),
    [pytest.param(*case, marks=[] if case in TIED_SAMPLE else pytest.mark.slow) for case in TIED],
)
def test_the_presets_store_a_tied_table_once(
    workshop: Any, family: str, target: str | None, recipe: str | None, tmp_path: Path
) -> None:
    changes = {"embedding_size": 16} if family == "albert" else {}
    arguments = (family, "masked-lm")
    model = workshop.calibrated(recipe, *arguments, **changes) if recipe else workshop.model(*arguments, **changes)
    path = tmp_path / "model.onnx"
    notes = export_onnx(model, path, target=target).notes
    assert not [note for note in notes if "one weight" in note]
    size = model.embeddings.word.weight.numel()
    (table,) = [array for array in stored(path).values() if array.size == size]
    assert table.itemsize == (4 if target in (None, "tensorrt") else 1)
    runtime = {None: "onnxruntime", "tensorrt": "reference"}.get(target, target)
    report = verify(model, path, workshop.batches(model), runtime=runtime)
    assert [row.name for row in report.segments if row.wrong] == []


def test_a_tied_table_for_another_recipe_and_cpu(workshop: Any, tmp_path: Path) -> None:
    model, path = workshop.calibrated("tensorrt", task="masked-lm"), tmp_path / "model.onnx"
    export_onnx(model, path, target="onnxruntime", recipe="onnxruntime", isa="vnni")
    (table,) = [array for array in stored(path).values() if array.size == 83 * 32]
    assert table.dtype == np.int8
    assert verify(model, path, workshop.batches(model)[:1]).first_wrong is None


def test_a_table_that_is_stored_twice_is_told(workshop: Any, tmp_path: Path) -> None:
    model = workshop.calibrated(tied(decoder=False), task="masked-lm")
    (note,) = export_onnx(model, tmp_path / "model.onnx", target="onnxruntime").notes
    assert note.startswith("embeddings.word.weight and head.decoder.weight are one weight")


# Half precision


@pytest.mark.parametrize("dtype", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_half_precision_has_scales_of_its_own_type(workshop: Any, dtype: Any, tmp_path: Path) -> None:
    model, path, interface = workshop.calibrated("tensorrt"), tmp_path / "model.onnx", ExportInterface(dtype=dtype)
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
    report = verify(model, path, workshop.batches(model), runtime=runtime, interface=interface)
    assert report.problems == []
    assert len([row for row in report.segments if row.unit == "steps"]) == 8
    assert min(row.expected_float_sqnr_db for row in report.end_to_end) > 20
    wrong = copy.deepcopy(proto)
    scale = next(
        t for t in wrong.graph.initializer if t.name == "encoder.layers.0.feed_forward.up.input_quantizer.scale"
    )
    scale.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(scale) * 1.05).astype(scale_type(dtype)), scale.name))
    onnx.save(wrong, path)
    report = verify(model, path, workshop.batches(model), runtime=runtime, interface=interface)
    assert report.first_wrong == "encoder.layers.0.feed_forward.up.input_quantizer"


def scale_type(dtype: str) -> Any:
    return np.float16 if dtype == "fp16" else np.dtype("bfloat16")


def test_scales_that_half_precision_cannot_hold_are_all_named(workshop: Any, tmp_path: Path) -> None:
    model = workshop.calibrated("tensorrt")
    for slot, quantizer in named_slots(model):
        if slot.module.endswith(("scores", "up")) and slot.name == "input":
            quantizer.scale.fill_(1e-9)
    with pytest.raises(ExportError, match=r"fp16 holds scales from .*: 2 problems") as caught:
        export_onnx(model, tmp_path / "model.onnx", target="tensorrt", interface=ExportInterface(dtype="fp16"))
    assert "encoder.layers.0.attention.scores.input: its scale 1e-09 is out of range" in str(caught.value)
    assert next(model.parameters()).dtype == torch.float32


# Memory


LARGE = """
import json, re, sys
from pathlib import Path
from exporters.directory import export

export(sys.argv[1], sys.argv[2], target=None if sys.argv[3] == "float" else sys.argv[3])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["float", "onnxruntime"])
def test_more_than_two_gigabytes_take_little_more_memory_than_the_checkpoint(target: str, tmp_path: Path) -> None:
    """The peak of the whole process, torch and onnx included, against the size of the float weights."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of a process is read from /proc")
    config = configure(
        "bert",
        vocab_size=1000,
        hidden_size=2048,
        num_hidden_layers=11,
        num_attention_heads=16,
        intermediate_size=8192,
        max_position_embeddings=64,
    )
    model = build(config)
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert size > 2**31
    save_model(model, tmp_path / "float")
    source = tmp_path / "float"
    if target != "float":
        quantize(model, "dynamic")
        set_mode(model, Mode.QUANTIZE)
        recipe = load_recipe("dynamic")
        save(model, tmp_path / "quantized", recipe=recipe, calibration={"name": "none"}, source=source)
        source = tmp_path / "quantized"
    del model
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    arguments = [sys.executable, "-W", "ignore", "-c", LARGE, str(source), str(tmp_path / "out"), target]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) * 1024 <= 2.5 * size
    assert (tmp_path / "out" / "model.onnx.data").is_file() == (target == "float")
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
