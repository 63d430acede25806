"""What an exported file holds, and what changing the recipe at export does."""

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

from exporters.io_signature import IOSignature, token_inputs
from exporters.onnx import write
from exporters.onnx.export import export_onnx
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner
from exporters.verification.verify import sqnr_db, verify
from qdq.checkpoint import save
from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, set_mode
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from qdq.models.model import Model
    from tests.exporters.conftest import MakeRecipe, TinyModels
    from tests.exporters.onnx.conftest import Graphs


TARGETS = ("onnxruntime", "openvino", "tensorrt")


def outputs(model: Model, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in model(**batch).items()}


# What is in a file


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_the_result_says_what_was_written(tiny_models: TinyModels, target: str | None) -> None:
    _, path, exported = tiny_models.exported(target)
    assert exported.signature == IOSignature(token_inputs(), ("last_hidden_state", "pooler_output"))
    assert exported.to_dict() == {
        "target": target or "float",
        "recipe": None,
        "opset": 23 if target == "onnxruntime" else 21,
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
def test_weights_are_stored_in_int8_and_once(tiny_models: TinyModels, graphs: Graphs, target: str) -> None:
    model, path, _ = tiny_models.exported(target)
    slots = [slot for slot, quantizer in named_slots(model) if slot.name == "weight" and quantizer.spec]
    assert len(slots) == len(tiny_models.LINEARS) + (0 if target == "tensorrt" else 3)
    sizes = [model.get_submodule(slot.module).weight.numel() for slot in slots]
    integers = [array.size for array in graphs.stored(path).values() if array.dtype == np.int8 and array.ndim == 2]
    assert sorted(integers) == sorted(sizes)
    tables = [tuple(getattr(model.embeddings, name).weight.shape) for name in ("word", "position", "token_type")]
    pooler = tuple(model.pooler.dense.weight.shape)
    assert sorted(graphs.float_matrices(path)) == sorted([pooler, *(tables if target == "tensorrt" else [])])


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_the_file_is_valid_and_holds_no_trace_of_the_machine(tiny_models: TinyModels, target: str | None) -> None:
    _, path, _ = tiny_models.exported(target)
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


def test_the_same_model_gives_the_same_bytes(tiny_models: TinyModels, tmp_path: Path) -> None:
    _, path, _ = tiny_models.exported("onnxruntime")
    export_onnx(tiny_models.calibrated("onnxruntime"), tmp_path / "again.onnx", target="onnxruntime")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_onnx_runtime_runs_the_graph_as_it_is_written(tiny_models: TinyModels, tmp_path: Path) -> None:
    _, path, _ = tiny_models.exported("onnxruntime")
    written = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert written["MatMulIntegerToFloat"] == len(tiny_models.LINEARS)
    assert written["DequantizeLinear"] == 0
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert run["MatMulIntegerToFloat"] == len(tiny_models.LINEARS)
    assert not {"SkipLayerNormalization", "BiasGelu", "EmbedLayerNormalization", "Softmax"} & set(run)
    assert (run["Attention"], run["Transpose"]) == (1, 0)
    assert run["LayerNormalization"] == 3
    assert run["QuantizeLinear"] == 4  # query, key and value share one


def test_tensorrt_gets_symmetric_int8_alone(tiny_models: TinyModels, graphs: Graphs) -> None:
    _, path, _ = tiny_models.exported("tensorrt")
    proto, constants = onnx.load(path), graphs.stored(path)
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


def test_the_real_parser_and_builder_take_the_tensorrt_file(tiny_models: TinyModels) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT's own parser is not installed: qdq[tensorrt-rtx]")
    _, path, exported = tiny_models.exported("tensorrt")

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


def test_openvino_computes_the_same(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported("openvino")
    run = OpenVINORunner(path)
    for batch in tiny_models.batches(model):
        found = run({name: value.numpy() for name, value in batch.items()})
        for name, expected in outputs(model, batch).items():
            assert sqnr_db(expected, found[name]) > 25, name


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_recipe_that_is_not_the_targets_own_is_exact_on_this_cpu_too(tiny_models: TinyModels, target: str) -> None:
    model, path, exported = tiny_models.exported(target, "qdqbert")
    assert len(exported.notes) == (target == "onnxruntime")
    assert all("stored in uint8, which is exact on every CPU" in note for note in exported.notes)
    report = verify(model, path, tiny_models.batches(model), runtime=target)
    assert report.problems == []


@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_fewer_bits_and_narrow_ranges_run_optimized(
    tiny_models: TinyModels, make_recipe: MakeRecipe, target: str, tmp_path: Path
) -> None:
    narrow, weight = {"narrow_range": True}, {"bits": 6, "granularity": "per-axis(0)"}
    recipe = make_recipe(narrow, weight, matmul=narrow, add={"bits": 7, "signed": False, "symmetric": False})
    model = tiny_models.calibrated(recipe)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, target=target)
    assert verify(model, path, tiny_models.batches(model), runtime=target).problems == []
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["MatMulIntegerToFloat"] == (len(tiny_models.LINEARS) if target == "onnxruntime" else 0)


@pytest.mark.parametrize("bits", [8, pytest.param(5, marks=pytest.mark.slow)])
def test_tokens_with_scales_of_their_own_are_multiplied_as_integers(
    tiny_models: TinyModels, make_recipe: MakeRecipe, bits: int, tmp_path: Path
) -> None:
    model = tiny_models.calibrated(
        make_recipe({"bits": bits, "dynamic": True, "granularity": "per-token"}, {"granularity": "per-axis(0)"})
    )
    path = tmp_path / "model.onnx"
    export_onnx(model, path, target="onnxruntime")
    assert Counter(node.op_type for node in onnx.load(path).graph.node)["MatMulIntegerToFloat"] == len(
        tiny_models.LINEARS
    )
    report = verify(model, path, tiny_models.batches(model))
    assert report.problems == []
    assert {f"encoder.layers.0.{name}.input_quantizer" for name in ("attention.query", "feed_forward.down")} <= {
        row.name for row in report.segments
    }


def test_repeated_layers_share_their_weights_and_keep_their_own_ranges(
    tiny_models: TinyModels, graphs: Graphs, tmp_path: Path
) -> None:
    model = tiny_models.calibrated("onnxruntime", "albert", num_hidden_layers=2, embedding_size=16)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, target="onnxruntime")
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["MatMulIntegerToFloat"] == 2 * len(tiny_models.LINEARS)
    integers = [array for array in graphs.stored(path).values() if array.dtype == np.int8 and array.ndim == 2]
    assert len(integers) == len(tiny_models.LINEARS) + 3
    assert len({graphs.quantizers(path)[f"encoder.layers.{n}.attention.query.input_quantizer"] for n in range(2)}) == 2
    assert verify(model, path, tiny_models.batches(model)).problems == []


def test_weights_of_large_models_lie_beside_the_file(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "EXTERNAL_ABOVE", 1000)
    model = tiny_models.calibrated("onnxruntime")
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    elsewhere = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert verify(model, elsewhere / "model.onnx", tiny_models.batches(model)).problems == []


# Changing the recipe at export


def test_a_checkpoint_of_another_recipe_gives_tensorrt_the_same_file(tiny_models: TinyModels, graphs: Graphs) -> None:
    own, retargeted = tiny_models.exported("tensorrt"), tiny_models.exported("tensorrt", "onnxruntime")
    assert graphs.quantizers(retargeted[1]) == graphs.quantizers(own[1])
    assert {(dtype, zero) for _, dtype, zero in graphs.quantizers(retargeted[1]).values()} == {("int8", 0)}
    scales = [
        {
            name: array.tolist()
            for name, array in graphs.stored(path).items()
            if name.removesuffix("_scaled").endswith("weight_quantizer.scale")
        }
        for _, path, _ in (own, retargeted)
    ]
    assert scales[0] == scales[1]
    assert len({name.removesuffix("_scaled") for name in scales[0]}) == len(tiny_models.LINEARS)
    exported = retargeted[2]
    assert exported.recipe == load_recipe("tensorrt")
    assert exported.notes == (
        "The checkpoint's recipe cannot run on tensorrt: its ranges were used with the preset 'tensorrt'.",
    )
    assert json.loads(json.dumps(exported.to_dict()))["recipe"]["name"] == "tensorrt"


def test_the_model_then_computes_what_the_file_computes(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported("tensorrt", "onnxruntime")
    assert verify(model, path, tiny_models.batches(model), runtime="reference").problems == []


def test_a_recipe_can_be_asked_for_and_ranges_stay(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_models.exported("tensorrt", "onnxruntime")[0])  # from onnxruntime to tensorrt, and back
    exported = export_onnx(model, tmp_path / "model.onnx", target="onnxruntime", recipe="onnxruntime")
    assert exported.recipe == load_recipe("onnxruntime")
    assert exported.notes == ()
    assert (tmp_path / "model.onnx").read_bytes() == tiny_models.exported("onnxruntime")[1].read_bytes()


def test_a_quantized_model_exported_without_target_is_in_float(
    tiny_models: TinyModels, graphs: Graphs, tmp_path: Path
) -> None:
    model = tiny_models.calibrated("onnxruntime")
    exported = export_onnx(model, tmp_path / "model.onnx", target=None)
    assert exported.target == "float"
    assert not graphs.quantizers(tmp_path / "model.onnx")
    batch = tiny_models.batches(model)[0]
    found = OnnxRuntimeRunner(tmp_path / "model.onnx")({name: value.numpy() for name, value in batch.items()})
    for name, expected in outputs(tiny_models.model(), batch).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)


def test_a_model_in_training_is_exported_as_it_evaluates_and_goes_on_training(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    model = tiny_models.model().train()
    export_onnx(model, tmp_path / "model.onnx", target=None)
    assert all(part.training for part in model.modules())
    assert (tmp_path / "model.onnx").read_bytes() == tiny_models.exported(None)[1].read_bytes()


def test_what_training_moves_is_constant_in_a_file(tiny_models: TinyModels, tmp_path: Path) -> None:
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
    model = tiny_models.calibrated(Recipe.from_dict({"name": "trained", "rules": rules}))
    batch = tiny_models.batches(model)[0]
    before = outputs(model, batch)
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    for name, array in outputs(model, batch).items():
        np.testing.assert_array_equal(array, before[name])
    assert verify(model, tmp_path / "model.onnx", tiny_models.batches(model)).problems == []
    written = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert written["MatMulIntegerToFloat"] == len(tiny_models.LINEARS)


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
